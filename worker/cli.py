"""The executing commands: worker, run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command()
def worker(
    stacks: Annotated[str, typer.Option(help="Serve only these stacks, separated by commas.")] = "",
    concurrency: Annotated[int, typer.Option(min=0, help="Builds at once (0: two a processor).")] = 0,
    local: Annotated[bool, typer.Option("--local", hidden=True)] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Run a worker for the stacks whose toolchains this machine has."""
    from shared.errors import ConfigError
    from shared.settings import load_settings
    from worker.app import configure_logging, serve

    settings = load_settings({"worker.concurrency": concurrency} if concurrency else None)
    if not settings.broker.url:
        raise ConfigError(
            "a worker needs a broker",
            hint="set ORCHESTRATOR_BROKER__URL, or use `orchestrator farm up` for the local farm",
        )
    configure_logging(verbose=verbose)
    named = [name.strip() for name in stacks.split(",") if name.strip()]
    raise typer.Exit(serve(settings, stacks=named, local=local))


@app.command()
def run(project: Annotated[Path, typer.Argument(metavar="DIR", help="A project that `execute` delivered.")]) -> None:
    """Run a built project in the foreground; its exit code is passed through."""
    from worker.local import run_here

    raise typer.Exit(run_here(project, None))
