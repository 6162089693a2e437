"""No sandbox: commands run as the worker's user, on the machine itself. Must be asked for by name."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shared.errors import SandboxError
from worker import supervisor
from worker.capture import OnOutput
from worker.containment import kill_now
from worker.process import CancelToken, ProcessLimits, ProcessResult, run_process
from worker.sandbox.base import CANNOT_EXECUTE, Bind, SandboxReport, View, fault_of_arguments, fault_of_folder, refused
from worker.supervisor import descendants

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NoSandbox:
    """Tidy, not isolated: a clean environment, and no process of a command outlives it."""

    name = "none"
    shares_environments = False

    def __init__(self, *, programs: Mapping[str, Path] | None = None) -> None:
        folders = dict.fromkeys(str(path.parent) for path in (programs or {}).values())
        self._path = os.pathsep.join([*folders, os.environ.get("PATH", DEFAULT_PATH)])

    def workspace_path(self, workspace: Path) -> str:
        return str(workspace)

    def run(
        self,
        view: View,
        argv: Sequence[str],
        limits: ProcessLimits,
        on_output: OnOutput | None = None,
        cancel: CancelToken | None = None,
    ) -> ProcessResult:
        """See `Sandbox.run`. Raises SandboxError for overlays, and for binds that are not where they are wanted."""
        for mount in view.binds:
            if not isinstance(mount, Bind) or (view.workspace / mount.target).resolve() != mount.source.resolve():
                raise SandboxError(
                    f"sandbox 'none' cannot show {mount.target}", hint="set sandbox.kind to 'bubblewrap' or 'docker'"
                )
        if fault := fault_of_arguments([*argv, *map("=".join, view.env.items())]):
            return refused(argv, fault, on_output, CANNOT_EXECUTE)
        if view.cwd and (fault := fault_of_folder(view.workspace, view.cwd, make=False)):
            return refused(argv, fault, on_output)
        env = {"PATH": self._path, "LANG": "C.UTF-8", "TERM": "dumb"}
        if view.tmp is not None:
            home = view.tmp / "home"
            home.mkdir(exist_ok=True)
            env |= {"TMPDIR": str(view.tmp), "HOME": str(home)}
        env |= view.env
        control_read, control_write = os.pipe()
        guard = _Supervised(control_write)
        command = [
            sys.executable, "-I", "-S", supervisor.__file__, str(control_read), str(view.workspace / view.cwd), *argv,
        ]  # fmt: skip
        try:
            result = run_process(
                command, env=env, limits=limits, on_output=on_output, cancel=cancel, pass_fds=(control_read,),
                containment=guard,
            )  # fmt: skip
        finally:
            guard.let_go()
            os.close(control_read)
        return replace(result, argv=tuple(argv))

    def check(self) -> SandboxReport:
        return SandboxReport(
            name=self.name,
            isolated=False,
            shares_environments=False,
            reason="without a sandbox every build sees its project at another path",
            notes=("no isolation: builds run as this user and can read and change everything it can",),
        )


class _Supervised:
    """Containment by `worker/supervisor.py`, which ends everything once the control pipe is closed."""

    def __init__(self, control: int) -> None:
        self._control = control

    def started(self, pid: int) -> None:
        pass

    def members(self, pid: int) -> list[int]:
        return descendants(pid)

    def kill(self, pid: int) -> None:
        self.let_go()
        kill_now(descendants(pid))

    def settle(self, pid: int) -> None:
        # The command may have killed its guard; what is still in its group is all that can be found then.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

    def let_go(self) -> None:
        """Closes the control pipe, once."""
        if self._control >= 0:
            os.close(self._control)
            self._control = -1
