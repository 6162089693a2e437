#!/usr/bin/env python3
"""The face of the Orchestrator Toolkit: `execute_plan`, `submit_plan`, `run_project`; as a script, the CLI.

Importing this is quick: nothing heavy is loaded before it is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # a folder on PYTHONPATH must not come before our own packages
    _HERE = str(Path(__file__).resolve().parent)
    sys.path[:] = [_HERE, *(entry for entry in sys.path if entry != _HERE)]

if TYPE_CHECKING:
    from plugins import PluginManager
    from producer.client import BuildHandle

__all__ = ["execute_plan", "main", "run_project", "submit_plan"]


def execute_plan(
    plan: Mapping[str, Any], output_dir: str | Path | None = None, plugins: PluginManager | None = None
) -> dict[str, Any]:
    """Build and run a plan in this process, so that `plugins` fire here: the result as a mapping.

    `project_dir`, `stack`, `venv` and `run_cmd` are always in it, beside every field of `BuildResult`. Raises
    `PlanError` for a bad plan and `FarmError` for a fault of this machine; a failing build is a result.
    """
    from shared.installation import verify

    verify()
    from worker.local import execute_here

    return execute_here(plan, Path(output_dir) if output_dir else None, plugins).to_dict()


def submit_plan(plan: Mapping[str, Any], *, queue_anyway: bool = False) -> BuildHandle:
    """Put a plan on its queue: a handle with `wait`, `follow`, `cancel`, `result` and `status`.

    Uses the configured broker, else the local farm, which is started if need be. Raises `PlanError`, `FarmError`.
    """
    from shared.installation import verify

    verify("shared", "producer")
    from producer.client import Farm
    from shared.plan import Plan
    from shared.settings import load_settings

    return Farm.open(load_settings()).submit(Plan.parse(plan), queue_anyway=queue_anyway)


def run_project(project_dir: str | Path, plugins: PluginManager | None = None) -> int:
    """Run a built project in the foreground through its `run.sh`, in the sandbox: its exit code."""
    from shared.installation import verify

    verify()
    from worker.local import run_here

    return run_here(Path(project_dir), plugins)


def main() -> None:
    """The command line."""
    from shared.installation import verify

    verify("shared", "plugins", "producer", "worker")
    from producer.cli import app, run_app
    from worker.cli import app as worker_app

    app.registered_commands += worker_app.registered_commands
    run_app()


if __name__ == "__main__":
    main()
