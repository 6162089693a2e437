"""One command to its end: clean environment, streamed output, deadlines, no survivors.

The only place that starts a process. Everything happens in the calling thread, so that a child's parent-death
signal (which follows the thread, prctl(2)) fires exactly when its build is gone.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from shared.errors import SandboxError
from shared.result import Output
from worker.capture import Capture, OnOutput
from worker.containment import (
    HINT_UNKILLABLE,
    UNKILLABLE_S,
    Containment,
    ProcessGroup,
    is_over,
    open_pidfd,
    status_of,
    sweep_group,
    terminate,
)

READ_BYTES = 65_536
SAMPLE_S = (0.02, 0.1, 0.5)  # peak memory: seconds to the first look, to the second, between all others
EPILOGUE_S = 0.1  # for what waited for the last handler of TERM to report how that ended
TICK_S = 0.05  # how often an ending process is looked at
DRAIN_BYTES = 4 * 1_048_576  # what a dead process's pipes can still hold, with room to spare


class CancelToken:
    """A one-way switch that any number of waiters can select on; `set` may come from any thread."""

    def __init__(self) -> None:
        self._reason: str | None = None
        # Never read, so it stays readable for every waiter once something was written.
        self._read, self._write = os.pipe()

    def set(self, reason: str) -> None:
        """Cancels, with a reason for the result; the first reason stays."""
        if self._reason is None:
            self._reason = reason
            os.write(self._write, b"x")

    @property
    def is_set(self) -> bool:
        return self._reason is not None

    @property
    def reason(self) -> str:
        return self._reason or ""

    def fileno(self) -> int:
        """A descriptor that is readable from the moment of `set` on; never read from it."""
        return self._read

    def wait(self, timeout_s: float | None = None) -> bool:
        """Sleeps until set, at most `timeout_s`; whether it is set."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.poll(None if timeout_s is None else math.ceil(timeout_s * 1000))
        return self.is_set

    def __del__(self) -> None:
        for fd in (self._read, self._write):
            with contextlib.suppress(OSError):
                os.close(fd)


class Ended(StrEnum):
    """Why a process is over: by itself, or what made us stop it."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    TIMEOUT = "timeout"
    IDLE = "idle"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class ProcessLimits:
    """Seconds on the wall clock, seconds without output, bytes of output kept, seconds from TERM to KILL."""

    timeout_s: float | None = None
    idle_timeout_s: float | None = None
    output_bytes: int = 1_048_576
    term_grace_s: float = 2.0


@dataclass(frozen=True)
class ProcessResult:
    """How it ended. `signal` is a name such as "SIGSEGV".

    `exit_code` is None when a signal ended the process. A sandbox that is only told the shell's 128+n for its
    command sets both: it cannot tell a signal from a program that chose that code.
    `peak_memory_bytes` is sampled: the largest sum of the resident high-water marks of the processes alive together
    (shared pages count once a process); None when the process was over before the first look.
    """

    argv: tuple[str, ...]
    exit_code: int | None
    signal: str | None
    ended: Ended
    seconds: float
    peak_memory_bytes: int | None
    output: Output

    @property
    def ok(self) -> bool:
        return self.ended is Ended.EXITED and self.exit_code == 0


def run_process(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    limits: ProcessLimits,
    cwd: Path | str | None = None,
    on_output: OnOutput | None = None,
    cancel: CancelToken | None = None,
    stdin: int | None = None,
    pass_fds: Sequence[int] = (),
    containment: Containment | None = None,
) -> ProcessResult:
    """Runs `argv` to its end, or ends it, and returns when none of `containment` is left.

    The environment is exactly `env`; standard input is empty unless `stdin` is a descriptor. Output is kept to
    `limits.output_bytes`: the first half, which `on_output` also gets live, and the last half, which it gets at the
    end after a "note" of what was dropped between them. Output never kills.

    At a deadline or a cancel, the processes that handle TERM get it, and `term_grace_s` for as long as one of them
    lives; then KILL. Raises SandboxError when `argv` cannot be started or does not die; what `on_output` raises comes
    through after the process is gone.
    """
    begun = time.monotonic()
    capture = Capture(limits.output_bytes, on_output)
    if cancel is not None and cancel.is_set:
        return ProcessResult(tuple(argv), None, None, Ended.CANCELLED, 0.0, None, capture.finish())
    containment = containment or ProcessGroup()
    process = _start(argv, env=env, cwd=cwd, stdin=stdin, pass_fds=pass_fds)
    with contextlib.ExitStack() as cleanup:
        following = _Following(process, containment, limits, capture, cancel, begun, cleanup)
        try:
            containment.started(process.pid)
            following.to_the_end()
            containment.settle(process.pid)
            following.drain()
        except BaseException:
            _end_for_certain(process, containment)
            raise
        code = process.wait()
    sweep_group(process.pid)
    ended = following.ended or (Ended.SIGNALLED if code < 0 else Ended.EXITED)
    return ProcessResult(
        argv=tuple(argv),
        exit_code=code if code >= 0 else None,
        signal=signal_name(-code) if code < 0 else None,
        ended=ended,
        seconds=time.monotonic() - begun,
        peak_memory_bytes=following.peak_bytes,
        output=capture.finish(),
    )


def signal_name(number: int) -> str:
    """Such as "SIGSEGV"; "signal 40" for those without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _start(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | str | None, stdin: int | None, pass_fds: Sequence[int]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            close_fds=True,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        hint = ""
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN):
            hint = "this machine is out of file descriptors, processes or memory: lower worker.concurrency"
        raise SandboxError(f"cannot start {argv[0]!r}: {error}", hint=hint) from error


def _end_for_certain(process: subprocess.Popen[bytes], containment: Containment) -> None:
    """Leaves nothing behind on the way out of an error."""
    until = time.monotonic() + UNKILLABLE_S
    while process.poll() is None and time.monotonic() < until:
        containment.kill(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TICK_S)
    with contextlib.suppress(SandboxError):
        containment.settle(process.pid)


class _Following:
    """The loop around one running process."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        containment: Containment,
        limits: ProcessLimits,
        capture: Capture,
        cancel: CancelToken | None,
        begun: float,
        cleanup: contextlib.ExitStack,
    ) -> None:
        self.ended: Ended | None = None
        self.peak_bytes: int | None = None
        self._process, self._containment, self._limits, self._capture = process, containment, limits, capture
        self._cancel = cancel
        self._cleanup = cleanup
        self._last_output = begun
        self._deadline = begun + limits.timeout_s if limits.timeout_s is not None else math.inf
        self._sampled, self._sample_at = 0, begun + SAMPLE_S[0]
        self._kill_at = self._give_up_at = math.inf
        self._terminating: list[int] = []
        self._poll = select.poll()
        self._streams: dict[int, str] = {}
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            self._watch(name, pipe)
        self._exit_fd = open_pidfd(process.pid)
        if self._exit_fd is not None:
            cleanup.callback(os.close, self._exit_fd)
            self._poll.register(self._exit_fd, select.POLLIN)
        if cancel is not None:
            self._poll.register(cancel.fileno(), select.POLLIN)

    def _watch(self, name: str, pipe: IO[bytes] | None) -> None:
        assert pipe is not None
        self._cleanup.callback(pipe.close)
        os.set_blocking(pipe.fileno(), False)
        self._streams[pipe.fileno()] = name
        self._poll.register(pipe.fileno(), select.POLLIN | select.POLLHUP)

    def to_the_end(self) -> None:
        """Returns when the process is over (and not yet reaped)."""
        while True:
            ready = {fd for fd, _ in self._poll.poll(self._wait_ms())}
            now = time.monotonic()
            for fd in ready & self._streams.keys():
                self._read(fd, now)
            self._capture.flush_if_due(now)
            if self._is_over(ready):
                return
            self._decide(now)
            if now >= self._sample_at:
                self._sample(now)

    def drain(self) -> None:
        """Takes what the pipes still hold, and does not wait for more."""
        budget = DRAIN_BYTES
        now = time.monotonic()
        for fd in list(self._streams):
            while fd in self._streams and budget > 0:
                taken = self._read(fd, now)
                if taken == 0:
                    break
                budget -= taken

    def _is_over(self, ready: set[int]) -> bool:
        if self._exit_fd is not None:
            return self._exit_fd in ready
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _wait_ms(self) -> int:
        now = time.monotonic()
        until = min(self._capture.flush_at, self._sample_at, self._kill_at, self._give_up_at)
        if self.ended is None:
            until = min(until, self._deadline)
            if self._limits.idle_timeout_s is not None:
                until = min(until, self._last_output + self._limits.idle_timeout_s)
        if self.ended is not None or self._exit_fd is None:
            until = min(until, now + TICK_S)
        return max(0, math.ceil((until - now) * 1000))

    def _read(self, fd: int, now: float) -> int:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self._poll.unregister(fd)
            del self._streams[fd]
            return 0
        self._last_output = now
        self._capture.feed(self._streams[fd], data, now)
        return len(data)

    def _decide(self, now: float) -> None:
        if self.ended is None:
            idle_s = self._limits.idle_timeout_s
            if self._cancel is not None and self._cancel.is_set:
                self._poll.unregister(self._cancel.fileno())
                self._stop(Ended.CANCELLED, now)
            elif now >= self._deadline:
                self._stop(Ended.TIMEOUT, now)
            elif idle_s is not None and now >= self._last_output + idle_s:
                self._stop(Ended.IDLE, now)
        elif now >= self._kill_at or self._give_up_at < math.inf:
            self._kill(now)
        elif self._terminating and is_over(self._terminating):
            self._terminating = []
            self._kill_at = min(self._kill_at, now + EPILOGUE_S)

    def _stop(self, ended: Ended, now: float) -> None:
        if self._cancel is not None and ended is not Ended.CANCELLED:
            self._poll.unregister(self._cancel.fileno())
        self.ended = ended
        self._sample(now)
        self._terminating = terminate(self._containment, self._process.pid)
        for fd in self._terminating:
            self._cleanup.callback(os.close, fd)
        self._kill_at = now + self._limits.term_grace_s
        if not self._terminating and self._exit_fd is not None:
            self._kill(now)  # nobody handles TERM: waiting would help no one

    def _kill(self, now: float) -> None:
        if now >= self._give_up_at:
            raise SandboxError(
                f"process {self._process.pid} survived SIGKILL for {UNKILLABLE_S:.0f} s",
                hint=HINT_UNKILLABLE,
            )
        self._kill_at = math.inf
        self._give_up_at = min(self._give_up_at, now + UNKILLABLE_S)
        self._containment.kill(self._process.pid)

    def _sample(self, now: float) -> None:
        self._sampled = min(self._sampled + 1, len(SAMPLE_S) - 1)
        self._sample_at = now + SAMPLE_S[self._sampled]
        total_kb = 0
        for pid in self._containment.members(self._process.pid):
            total_kb += int(status_of(pid).get("VmHWM", "0").split()[0])
        if total_kb:
            self.peak_bytes = max(self.peak_bytes or 0, total_kb * 1024)
