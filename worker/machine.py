"""What this machine brings to a build: sandbox, environments, runtimes, settings. Opened once a worker."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import SandboxError
from shared.plan import Limits, Plan
from shared.settings import Settings
from shared.stacks import STACKS
from shared.stacks.base import Layout, Runtime
from worker import sandbox as sandboxes
from worker import toolchains
from worker.environments import EnvironmentStore
from worker.process import ProcessLimits, run_process
from worker.sandbox.base import Sandbox, SandboxReport

WORKSPACE = "/workspace"
SANDBOX_UV = "/opt/orchestrator/bin/uv"
SANDBOX_TOOLS = "/opt/orchestrator/tools"
SANDBOX_CACHE = "/var/cache/orchestrator"


@dataclass(frozen=True)
class EffectiveLimits:
    """A plan's limits over this worker's defaults."""

    install_timeout_s: float
    build_timeout_s: float
    run_timeout_s: float
    idle_timeout_s: float
    output_bytes: int
    network: str

    @classmethod
    def of(cls, plan: Plan, settings: Settings) -> EffectiveLimits:
        wanted = plan.limits.model_dump(include=set(cls.__dataclass_fields__), exclude_none=True)
        defaults = settings.limits.model_dump(include=set(cls.__dataclass_fields__))
        return cls(**{**defaults, **wanted})


UNENFORCED = ("memory_mb", "cpus", "processes", "disk_mb")


def unenforced(limits: Limits) -> list[str]:
    """The limits a plan sets that no worker enforces yet, as warnings for its result."""
    return [
        f"limits.{name} is not enforced by this version: the build runs without that bound"
        for name in UNENFORCED
        if getattr(limits, name) is not None
    ]


@dataclass(frozen=True)
class Machine:
    """Everything a build needs of the worker it runs on."""

    settings: Settings
    sandbox: Sandbox
    report: SandboxReport
    store: EnvironmentStore
    runtimes: Mapping[str, Sequence[Runtime]]
    uv: Path
    shell: str
    cache: Path = field(default_factory=Path)

    @classmethod
    def open(cls, settings: Settings) -> Machine:
        """Look at this machine and prove that its sandbox holds; raises `SandboxError` when it does not."""
        cache = settings.paths.cache
        for folder in (cache / "builds", cache / "projects", cache / "downloads" / "uv"):
            folder.mkdir(parents=True, exist_ok=True)
        uv = find_uv()
        runtimes = {"python": toolchains.discover(probe)}
        roots = sorted({Path(runtime.root) for found in runtimes.values() for runtime in found})
        sandbox = sandboxes.create(
            settings.sandbox.kind,
            toolchain_roots=roots,
            programs={"uv": uv},
            hidden=hidden_folders(settings),
            scratch=cache,
        )
        report = sandbox.check()
        shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
        return cls(settings, sandbox, report, EnvironmentStore(cache / "environments"), runtimes, uv, shell, cache)

    @property
    def stacks(self) -> list[str]:
        """The stacks whose toolchains are here, or those of them that the configuration names."""
        here = [name for name in STACKS if self.runtimes.get(name)]
        named = self.settings.worker.stacks
        return [name for name in here if not named or name in named]

    def versions(self) -> dict[str, str]:
        """Toolchain versions by stack, for the worker's announcement."""
        return {name: ", ".join(runtime.version for runtime in found) for name, found in self.runtimes.items() if found}

    def layout(self, workspace: Path) -> Layout:
        """Where a build's commands find things on this machine."""
        if self.sandbox.workspace_path(workspace) == WORKSPACE:
            return Layout(WORKSPACE, None, SANDBOX_UV, SANDBOX_TOOLS, SANDBOX_CACHE)
        return Layout(str(workspace), None, str(self.uv), str(self.cache / "tools"), str(self.cache / "downloads"))


def probe(argv: list[str]) -> str:
    """What a toolchain prints about itself; empty when it cannot be asked."""
    try:
        result = run_process(argv, env={"PATH": os.defpath}, limits=ProcessLimits(timeout_s=10, output_bytes=65_536))
    except SandboxError:
        return ""
    return result.output.text if result.exit_code == 0 else ""


def find_uv() -> Path:
    """The uv that came with this installation, else one on PATH. Raises `SandboxError`."""
    try:
        from uv import find_uv_bin

        return Path(find_uv_bin()).resolve()
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
        if found:
            return Path(found).resolve()
        raise SandboxError(
            "uv was not found", hint="it comes with the project's dependencies: `pip install uv`"
        ) from None


def hidden_folders(settings: Settings) -> list[Path]:
    """What no build may see: this installation and its environment; home, state, cache and configuration."""
    paths = settings.paths
    folders = [
        Path(__file__).resolve().parent.parent,
        Path.home(),
        paths.state,
        paths.cache,
        Path(paths.config_dir).expanduser(),
    ]
    if sys.prefix != sys.base_prefix:  # a virtual environment: else this would hide the toolchain itself
        folders.append(Path(sys.prefix))
    return list(dict.fromkeys(folder.absolute() for folder in folders))
