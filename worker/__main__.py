"""`python -m worker`: a worker for the stacks whose toolchains this machine has."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(entry for entry in sys.path if entry != _ROOT)]

from shared.installation import verify  # noqa: E402 - our own packages first

verify("shared", "plugins", "worker")

import typer  # noqa: E402

from shared.errors import OrchestratorError  # noqa: E402
from worker.cli import worker  # noqa: E402

if __name__ == "__main__":
    try:
        typer.run(worker)
    except OrchestratorError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from None
