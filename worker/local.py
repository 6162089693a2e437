"""Builds and runs in the caller's own process, through the same pipeline as a worker's."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugins import PluginManager
from plugins.configured import configured_plugins
from shared.errors import UsageError
from shared.plan import Plan
from shared.records import new_build_id
from shared.result import BuildResult
from shared.settings import load_settings
from worker.machine import Machine
from worker.pipeline import Job, execute
from worker.process import CancelToken
from worker.reporting import CallbackReporter
from worker.tasks import prune

METADATA = ".orchestrator/build.json"


def execute_here(plan: Mapping[str, Any], output_dir: Path | None, plugins: PluginManager | None) -> BuildResult:
    """Build a plan here and deliver its project below `output_dir` (default: `paths.output_dir`)."""
    settings = load_settings()
    job = Job(new_build_id(), Plan.parse(plan))
    manager = plugins if plugins is not None else PluginManager()
    machine = Machine.open(settings)
    target = output_dir or settings.paths.output
    return execute(job, machine, manager, CallbackReporter(), CancelToken(), deliver_to=target)


def run_here(project: Path, plugins: PluginManager | None) -> int:
    """Run a delivered project in the sandbox over its cached environment, printing its output: its exit code.

    Raises `UsageError` when the folder is no project of ours.
    """
    try:
        facts = json.loads((project / METADATA).read_bytes())
    except (OSError, ValueError):
        raise UsageError(
            f"{project} is not a project built here",
            hint="name a folder that `execute` delivered, such as output/my-project",
        ) from None
    files = [
        {
            "filename": path.relative_to(project).as_posix(),
            "code": base64.b64encode(path.read_bytes()).decode(),
            "encoding": "base64",
        }
        for path in sorted(project.rglob("*"))
        if path.is_file() and not path.is_symlink() and not _ours(path.relative_to(project))
    ]
    settings = load_settings()
    plan = Plan.parse({**facts.get("plan", {}), "files": files, "run": facts.get("run_cmd", "")})
    machine = Machine.open(settings)
    manager = plugins if plugins is not None else configured_plugins(settings)

    def show(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "output" and data["stage"] == "run":
            stream = sys.stdout if data["stream"] == "stdout" else sys.stderr
            stream.write(str(data["text"]))
            stream.flush()

    job = Job(new_build_id(), plan)
    cancel = CancelToken()
    try:
        result = execute(job, machine, manager, CallbackReporter(show), cancel)
    finally:
        prune(machine.cache / "projects", keep=settings.worker.keep_projects)
    if result.exit_code is None:
        sys.stderr.write(f"{result.status}: {result.message}\n")
        return result.process_exit_code
    return result.exit_code


def _ours(path: Path) -> bool:
    return (
        path.parts[0] in (".orchestrator", ".venv", ".git") or path.parts[-1] == "run.sh" or "__pycache__" in path.parts
    )
