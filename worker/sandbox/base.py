"""What every sandbox promises, and the words it is asked in."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from shared.result import Output
from worker.capture import OnOutput
from worker.process import CancelToken, Ended, ProcessLimits, ProcessResult

CANNOT_EXECUTE = 126  # the shell's codes: found but not executable, and not found (POSIX, 2.8.2)
NOT_FOUND = 127

MAX_ARGUMENT_BYTES = 131_071  # MAX_ARG_STRLEN of Linux with its closing NUL (execve(2))
MAX_ARGUMENTS_BYTES = 1_500_000  # of the quarter of the usual 8 MB stack that arguments and environment may take


@dataclass(frozen=True)
class Bind:
    """A folder or file of the host at `target`: absolute, or relative to the workspace."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Overlay:
    """`lower` with every change kept in `upper`; `work` is an empty folder on the file system of `upper`."""

    lower: Path
    upper: Path
    work: Path
    target: str


@dataclass(frozen=True)
class ThrowawayOverlay:
    """`lower`, writable, every change forgotten when the command ends."""

    lower: Path
    target: str


Mount = Bind | Overlay | ThrowawayOverlay


@dataclass(frozen=True)
class View:
    """What one command sees. `cwd` is relative to the workspace.

    `tmp` is a folder of the host that becomes /tmp (and holds HOME); without it /tmp lasts as long as the command.
    """

    workspace: Path
    env: Mapping[str, str] = field(default_factory=dict)
    binds: tuple[Mount, ...] = ()
    network: bool = False
    cwd: str = ""
    tmp: Path | None = None


@dataclass(frozen=True)
class SandboxReport:
    """What a probe of the boundary found. `notes` are weaknesses an operator should know; `reason` says why
    environments are not shared, when they are not."""

    name: str
    isolated: bool
    shares_environments: bool
    reason: str = ""
    notes: tuple[str, ...] = ()


class Sandbox(Protocol):
    """Runs commands of builds inside a boundary. Safe to use from many threads."""

    name: str
    shares_environments: bool
    """Whether the project is at one fixed path and overlays work."""

    def workspace_path(self, workspace: Path) -> str:
        """Where commands see `workspace`."""

    def run(
        self,
        view: View,
        argv: Sequence[str],
        limits: ProcessLimits,
        on_output: OnOutput | None = None,
        cancel: CancelToken | None = None,
    ) -> ProcessResult:
        """Runs `argv` to its end; whatever the command does is in the result, SandboxError is the farm's fault.

        A command that does not exist ends with 127, one that cannot be executed with 126.
        """

    def check(self) -> SandboxReport:
        """Probes the boundary; raises SandboxError naming what does not hold and what to do."""


def refused(argv: Sequence[str], message: str, on_output: OnOutput | None, exit_code: int = NOT_FOUND) -> ProcessResult:
    """The result of a command that cannot even be tried, by the user's own doing."""
    line = message + "\n"
    if on_output is not None:
        on_output("stderr", line.encode())
    return ProcessResult(
        argv=tuple(argv), exit_code=exit_code, signal=None, ended=Ended.EXITED, seconds=0.0, peak_memory_bytes=None,
        output=Output(head=line, total_bytes=len(line.encode())),
    )  # fmt: skip


def fault_of_arguments(texts: Sequence[str]) -> str | None:
    """Why no program can be given these arguments and variables; None when it can."""
    sizes = [len(os.fsencode(text)) for text in texts]
    if max(sizes, default=0) > MAX_ARGUMENT_BYTES:
        return f"an argument or variable has {max(sizes):,} bytes, the limit is {MAX_ARGUMENT_BYTES:,}: use a file"
    if sum(sizes) + 16 * len(sizes) > MAX_ARGUMENTS_BYTES:
        return f"arguments and variables have {sum(sizes):,} bytes, the limit is {MAX_ARGUMENTS_BYTES:,}: use a file"
    return None


def fault_of_folder(workspace: Path, relative: str, *, make: bool) -> str | None:
    """Why `relative` is not a plain folder below `workspace`; None when it is, or was made (`make`).

    No symbolic link is followed: a build may have left one where a mount or a working directory is wanted.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    here = os.open(workspace, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in PurePosixPath(relative).parts:
            if part in ("..", "/"):
                return f"{relative} is not inside the project"
            try:
                below = os.open(part, flags, dir_fd=here)
            except FileNotFoundError:
                if not make:
                    return f"{relative}: no such folder in the project"
                os.mkdir(part, 0o755, dir_fd=here)
                below = os.open(part, flags, dir_fd=here)
            except OSError:
                linked = stat.S_ISLNK(os.stat(part, dir_fd=here, follow_symlinks=False).st_mode)
                return f"{relative} is {'a symbolic link' if linked else 'not a folder'} where a folder is needed"
            os.close(here)
            here = below
    finally:
        os.close(here)
    return None


def fault_of_file(workspace: Path, relative: str, *, make: bool) -> str | None:
    """As `fault_of_folder`, for a plain file."""
    parent, name = str(PurePosixPath(relative).parent), PurePosixPath(relative).name
    if fault := fault_of_folder(workspace, parent, make=make):
        return fault
    path = workspace / parent / name
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not make:
            return f"{relative}: no such file in the project"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        return None
    return None if stat.S_ISREG(mode) else f"{relative} is not a plain file where a file is needed"
