"""A PID namespace as a containment: who is in it, how it ends, and that it did."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import time
from pathlib import Path

from shared.errors import SandboxError
from worker.containment import HINT_UNKILLABLE, UNKILLABLE_S, is_over, kill_now, open_pidfd, status_of
from worker.supervisor import children, descendants

GATE = ("/bin/sh", "-c", 'read -r _ && exec "$@" </dev/null', "build")
"""Comes before the program and its arguments; standard input is the gate."""

_START_S = 60.0
_LOOK_S = 0.001
_STOP_S = 0.1


class Namespace:
    """What one bubblewrap started: bwrap itself, its first process inside (PID 1 there), and the program below that.

    The kernel kills everything in a PID namespace when its first process ends, and that process counts as ended
    only when all of them are gone (pid_namespaces(7)): its end is the proof.

    bwrap and that first process each ask to die with their parent, the latter only milliseconds after the start. A
    worker that is killed in between would leave a build behind that nobody watches. So the program waits at a gate
    (`GATE`) until both are known to be bound; if the worker dies first, the gate's end-of-file ends the program.
    """

    def __init__(self, status_fd: int, gate_fd: int) -> None:
        os.set_blocking(status_fd, False)
        self._status_fd, self._gate_fd = status_fd, gate_fd
        self._status = b""
        self._first = 0
        self._first_namespace: int | None = None
        self._firsts: list[int] = []  # pidfds
        self.exit_code: int | None = None
        """Of the program; None when it was never executed, or did not end by itself."""

    def started(self, pid: int) -> None:
        bwrap = open_pidfd(pid)
        assert bwrap is not None  # unreaped
        try:
            until = time.monotonic() + _START_S
            while not is_over([bwrap], _LOOK_S):
                self._read_status()
                if self._first and _is_bound(self._first):
                    self._keep_crashes_inside(pid)
                    os.write(self._gate_fd, b"\n")
                    return
                if time.monotonic() > until:
                    raise SandboxError(
                        f"the sandbox was not set up within {_START_S:.0f} s",
                        hint="this machine is overloaded, or a folder that builds see is on a dead network file system",
                    )
        finally:
            os.close(bwrap)

    def _keep_crashes_inside(self, pid: int) -> None:
        """No core dumps. A limit of one byte, not of none: only that also spares the machine's own handler of core
        dumps, which runs as root outside of every sandbox and would read what the program left in memory (core(5))."""
        for member in self.members(pid):
            with contextlib.suppress(ProcessLookupError, PermissionError, ValueError):
                resource.prlimit(member, resource.RLIMIT_CORE, (1, 1))

    def members(self, pid: int) -> list[int]:
        return [member for first in children(pid) for member in descendants(first)]

    def kill(self, pid: int) -> None:
        # Stopped first: killed while it sets up, bwrap could leave a child behind that waits for it for ever.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        until = time.monotonic() + _STOP_S
        while time.monotonic() < until and _state(pid) not in ("T", "t", "Z", ""):
            time.sleep(0.0005)
        firsts = children(pid)
        self._firsts += [fd for first in firsts if (fd := open_pidfd(first)) is not None]
        kill_now([*firsts, pid])

    def settle(self, pid: int) -> None:  # noqa: ARG002 — the namespace is known by its first process
        self._read_status()
        self._hold_first()
        if not is_over(self._firsts, UNKILLABLE_S):
            raise SandboxError(
                f"processes of a build survived SIGKILL for {UNKILLABLE_S:.0f} s",
                hint=HINT_UNKILLABLE,
            )
        for fd in self._firsts:
            # Ours to collect only when the worker is the first process of a container.
            with contextlib.suppress(ChildProcessError, OSError):
                os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)

    def close(self) -> None:
        """Gives the descriptors back."""
        for fd in (*self._firsts, self._gate_fd):
            os.close(fd)
        self._firsts = []

    def _read_status(self) -> None:
        """What bwrap has said so far: its first process inside, and at the end the program's exit code."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._status_fd, 4096):
                self._status += chunk
        *lines, self._status = self._status.split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                self._first = int(said.get("child-pid", self._first))
                self._first_namespace = said.get("pid-namespace", self._first_namespace)
                self.exit_code = said.get("exit-code", self.exit_code)

    def _hold_first(self) -> None:
        """Ends the namespace by its first process, should bwrap's own end not have done so."""
        fd = open_pidfd(self._first) if self._first else None
        if fd is None:
            return
        with contextlib.suppress(OSError):
            if self._first_namespace not in (None, Path(f"/proc/{self._first}/ns/pid").stat().st_ino):
                os.close(fd)  # the number already belongs to somebody else
                return
        self._firsts.append(fd)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)


def sweep() -> None:
    """Ends what a worker left behind that was killed in the instant of a start.

    A bubblewrap whose parent died between its fork and its first word waits for that word for ever; it has executed
    nothing yet. Its mark is to be the first process of a namespace, at our gate, without a bubblewrap above it.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if not _is_ours(entry):
                continue
            fd = os.pidfd_open(int(entry.name))
            try:
                status = status_of(int(entry.name))
                numbers = status["NSpid"].split()
                if len(numbers) > 1 and numbers[-1] == "1" and not _is_ours(Path("/proc", status["PPid"])):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    is_over([fd], _STOP_S)
            except KeyError:
                pass  # over in the meantime
            finally:
                os.close(fd)


def _is_ours(entry: Path) -> bool:
    """Whether this process of /proc is a bubblewrap that was started at the gate."""
    arguments = (entry / "cmdline").read_bytes().split(b"\0")
    return arguments[1] == b"--args" and GATE[2].encode() in arguments


def _is_bound(first: int) -> bool:
    """Whether bwrap's first process inside will die with bwrap.

    bubblewrap.c, do_init(): it asks for its parent-death signal and right after that loads the system call filter,
    and the filter is what can be seen from outside. bwrap itself asks before it tells that process's number.
    """
    return status_of(first).get("Seccomp") == "2"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
