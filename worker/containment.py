"""What holds the descendants of a process: who they are, how they are asked to end, how they are made to."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from shared.errors import SandboxError
from worker.supervisor import descendants

UNKILLABLE_S = 15.0  # a process in uninterruptible sleep: give up and say so
HINT_UNKILLABLE = "it hangs in the kernel, often on a dead network file system; see `ps -eo pid,stat,wchan:30,cmd`"


class Containment(Protocol):
    """What holds the descendants of a process that was started. `pid` is the process started, not yet reaped."""

    def started(self, pid: int) -> None:
        """Called once, first: may wait until `pid` is safely held; raises SandboxError if it never is."""

    def members(self, pid: int) -> list[int]:
        """PIDs of the program itself, without the containment's own processes."""

    def kill(self, pid: int) -> None:
        """Kills everything at once, `pid` too; called again until `pid` is over."""

    def settle(self, pid: int) -> None:
        """Called when `pid` is over: returns once nothing is left, raises SandboxError if something stays."""


class ProcessGroup:
    """Containment by process group and family tree: enough for well-behaved tools.

    A daemon that forked twice *and* made its own session escapes it once its parent is gone: untrusted programs
    belong in a PID namespace or under `worker/supervisor.py`.
    """

    def started(self, pid: int) -> None:
        pass

    def members(self, pid: int) -> list[int]:
        return [pid, *descendants(pid)]

    def kill(self, pid: int) -> None:
        family = descendants(pid)
        # The leader first: a shell that outlives its child for a moment would report on it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        kill_now(family)

    def settle(self, pid: int) -> None:
        # The unreaped leader keeps the group's number ours, so this cannot hit a stranger.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def kill_now(pids: Sequence[int]) -> None:
    """SIGKILL to each of `pids` that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def open_pidfd(pid: int) -> int | None:
    """A descriptor that is readable once `pid` is over; None when it is gone or the platform has none."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def is_over(pidfds: Sequence[int], timeout_s: float = 0.0) -> bool:
    """Whether all of these processes are over, waiting at most `timeout_s` for it."""
    until = time.monotonic() + timeout_s
    left = set(pidfds)
    while left:
        poll = select.poll()
        for fd in left:
            poll.register(fd, select.POLLIN)
        ready = poll.poll(max(0, math.ceil((until - time.monotonic()) * 1000)))
        if not ready:
            return False
        left -= {fd for fd, _ in ready}
    return True


def sweep_group(pid: int) -> None:
    """Waits until the process group of the reaped `pid` is empty; it was sent KILL before."""
    until = time.monotonic() + UNKILLABLE_S
    while time.monotonic() < until:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-pid, os.WNOHANG)  # orphans are ours when the worker is a container's first process
        try:
            os.killpg(pid, 0)
        except (ProcessLookupError, PermissionError):
            return
        if not _group_lives(pid):
            return
        time.sleep(0.002)
    raise SandboxError(
        f"processes of group {pid} survived SIGKILL for {UNKILLABLE_S:.0f} s",
        hint=HINT_UNKILLABLE,
    )


def _group_lives(group: int) -> bool:
    """Whether a process of that group is more than a zombie that its new parent has yet to collect."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            state, _, member_of = entry.read_bytes().rpartition(b")")[2].split()[:3]
            if int(member_of) == group and state not in (b"Z", b"X"):
                return True
    return not Path("/proc/self/stat").exists()  # no /proc: nothing better than the group itself


def terminate(containment: Containment, pid: int) -> list[int]:
    """TERM to the members that handle it; pidfds of those, to see when they are over.

    The others would only die of it, and a shell that dies first takes the program it waits for with it, before that
    program could clean up.
    """
    if not Path("/proc/self/status").exists() or not hasattr(os, "pidfd_open"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGTERM)
        return []
    handlers = [member for member in containment.members(pid) if _handles_term(member)]
    opened = {member: fd for member in handlers if (fd := open_pidfd(member)) is not None}
    # Asked again with the descriptors open: a number that was reused in between is not ours to signal.
    ours = set(containment.members(pid)) if opened else set()
    kept = []
    for member, fd in opened.items():
        if member in ours:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(fd, signal.SIGTERM)
            kept.append(fd)
        else:
            os.close(fd)
    return kept


def _handles_term(pid: int) -> bool:
    """Whether TERM would run a handler (or is blocked to be waited for) instead of killing or being ignored."""
    status = status_of(pid)
    bit = 1 << (signal.SIGTERM - 1)
    return bool((int(status.get("SigCgt", "0"), 16) | int(status.get("SigBlk", "0"), 16)) & bit)


def status_of(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
