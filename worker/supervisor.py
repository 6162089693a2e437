"""A guard for one command where no PID namespace holds its descendants.

Started as a stand-alone script, `python -I -S supervisor.py CONTROL_FD DIRECTORY COMMAND ARGUMENT…`: it may import
nothing of ours, and it starts in ~15 ms. It adopts every orphan of the command (PR_SET_CHILD_SUBREAPER, Linux 3.4,
prctl(2)), so that a daemon that forked twice and made its own session is still its descendant. When the command
ends, or when CONTROL_FD reaches end-of-file because the worker that held the other end died, it kills all of them,
and then ends as the command did: same exit code, same signal, 127 or 126 when the command could not be started.

A command may still kill its own guard: this is tidiness, not isolation. Off Linux there is no subreaper, and only
the command's process group is killed (best effort).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36

_PAUSE_S = 0.002


def children(pid: int) -> list[int]:
    """PIDs of the living and unreaped children of `pid`; empty when it is gone or there is no /proc."""
    found: list[int] = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 — pathlib would double this script's start
    except OSError:
        return found
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:  # noqa: PTH123
                found += map(int, file.read().split())
        except FileNotFoundError:
            if os.path.exists(f"/proc/{pid}/task/{task}"):  # noqa: PTH110
                return _children_by_scan(pid)  # a kernel without CONFIG_PROC_CHILDREN
        except OSError:
            continue
    return found


def _children_by_scan(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                if int(file.read().rpartition(b")")[2].split()[1]) == pid:
                    found.append(int(name))
    return found


def descendants(pid: int) -> list[int]:
    """PIDs of all descendants of `pid`, parents before their children; a snapshot, not a lock."""
    found = children(pid)
    seen = set(found)
    for parent in found:  # grows while it is walked
        for child in children(parent):
            if child not in seen:
                seen.add(child)
                found.append(child)
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _start(directory: str, command: list[str]) -> int:
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(137)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)  # a worker's ignored signals must not be the command's
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setpgid(0, 0)
        os.chdir(directory)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        what = directory if error.filename == directory else command[0]
        os.write(2, f"{what}: {error.strerror}\n".encode(errors="replace"))
        os._exit(127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126)
    except BaseException:  # noqa: BLE001 — nothing of this child may go on as a second guard
        os._exit(126)


def _reap(main: int) -> int | None:
    """Collects everything that ended; the wait status of `main` if it was among it."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, value = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == main:
                status = value
    return status


def _kill_all(main: int) -> None:
    """Returns when no descendant is left. Repeats, since one may fork between the look and the kill."""
    me = os.getpid()
    while True:
        left = descendants(me)
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(main, signal.SIGKILL)
        _reap(main)
        if not left:
            return
        time.sleep(_PAUSE_S)


def _end_as(status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        _prctl(PR_SET_DUMPABLE, 0)  # the command may leave a core file, its guard never
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        os._exit(128 - code)
    os._exit(code)


def main(argv: list[str]) -> None:
    """Runs `argv[2:]` in the directory `argv[1]` under the control pipe `argv[0]`; never returns."""
    control, directory, command = int(argv[0]), argv[1], argv[2:]
    os.set_inheritable(control, False)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pid = 0
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM) if pid else None)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    pid = _start(directory, command)

    poll = select.poll()
    poll.register(control, select.POLLIN | select.POLLHUP)
    poll.register(wake_read, select.POLLIN)
    status = _reap(pid)
    while status is None:
        ready = {fd for fd, _ in poll.poll()}
        if wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_read, 4096)
        status = _reap(pid)
        if status is None and control in ready and not os.read(control, 1):
            status = signal.SIGKILL
    _kill_all(pid)
    _end_as(status)


if __name__ == "__main__":
    main(sys.argv[1:])
