"""The submitting commands: parse, call, render."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from producer.client import Farm
    from shared.result import BuildResult
    from shared.settings import Settings

app = typer.Typer(
    name="orchestrator",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A build farm for AI coding agents: hand in a plan, get the truth about it.",
)

PlanArgument = Annotated[str, typer.Argument(metavar="PLAN", help="A JSON file, a directory, or - for standard input.")]
BuildArgument = Annotated[str, typer.Argument(metavar="ID", help="A build id, as `submit` prints it.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]
OutputDir = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where the project is delivered.")
]
QueueAnyway = Annotated[bool, typer.Option("--queue-anyway", help="Queue it even if no live worker can build it.")]


@app.command()
def execute(
    plan: PlanArgument, output: OutputDir = None, as_json: Json = False, queue_anyway: QueueAnyway = False
) -> None:
    """Submit a plan, follow it live, and deliver the project."""
    from producer.render import Progress

    settings, farm = _open()
    handle = farm.submit(_plan(plan, settings), queue_anyway=queue_anyway)
    progress = Progress()
    after = "0"
    while True:
        try:
            for event in handle.follow(after=after):
                after = event.cursor
                progress.show(event)
            break
        except KeyboardInterrupt:
            if sys.stdin.isatty() and sys.stderr.isatty() and not _confirm_cancel():
                sys.stderr.write(f"build {handle.build_id} goes on; see `orchestrator logs -f {handle.build_id}`\n")
                raise typer.Exit(130) from None
            handle.cancel()
            handle.wait(timeout_s=30)
            sys.stderr.write(f"build {handle.build_id} cancelled\n")
            raise typer.Exit(130) from None
    result = handle.wait()
    if result.project_dir:
        folder, left = farm.fetch(handle.build_id, output or settings.paths.output)
        venv = str(folder / ".venv") if result.venv else ""
        result = result.model_copy(
            update={"project_dir": str(folder), "venv": venv, "warnings": [*result.warnings, *left]}
        )
    _finish(result, as_json=as_json)


@app.command()
def submit(
    plan: PlanArgument,
    as_json: Json = False,
    queue_anyway: QueueAnyway = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result.")] = False,
) -> None:
    """Put a plan on its queue; prints the build id."""
    settings, farm = _open()
    handle = farm.submit(_plan(plan, settings), queue_anyway=queue_anyway)
    if wait:
        _finish(handle.wait(), as_json=as_json)
    refused = handle.result() if not queue_anyway else None
    if refused and refused.cause == "unsatisfiable":
        _finish(refused, as_json=as_json)
    _print({"build_id": handle.build_id} if as_json else handle.build_id)


@app.command()
def status(build: BuildArgument, as_json: Json = False) -> None:
    """How a build stands."""
    from producer.render import facts

    record = _open(start=False)[1].status(build).to_dict()
    _print(record if as_json else facts(record))


@app.command()
def logs(
    build: BuildArgument,
    as_json: Json = False,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Follow until the build ends.")] = False,
    after: Annotated[str, typer.Option(metavar="CURSOR", help="Only what came after this cursor.")] = "0",
) -> None:
    """What a build printed."""
    from producer.render import Progress, log_text, printable

    farm = _open(start=False)[1]
    if follow and not as_json:
        progress = Progress(sys.stdout)
        for event in farm.follow(build, after=after):
            progress.show(event)
        return
    events = list(farm.follow(build, after=after)) if follow else farm.events(build, after=after)
    if as_json:
        document = [{"cursor": event.cursor, "type": event.type, "data": event.data} for event in events]
        _print({"build_id": build, "events": document, "cursor": events[-1].cursor if events else after})
    else:
        text = log_text(events)
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)


@app.command()
def result(
    build: BuildArgument,
    as_json: Json = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the build to end.")] = False,
) -> None:
    """The verdict of a build; the exit code says how it ended."""
    from shared.errors import UsageError

    farm = _open(start=False)[1]
    found = farm.wait(build) if wait else farm.result(build)
    if found is None:
        raise UsageError(f"build {build} has not ended yet", hint="use --wait")
    _finish(found, as_json=as_json)


@app.command()
def cancel(build: BuildArgument, as_json: Json = False) -> None:
    """Stop a build, queued or running."""
    outcome = _open(start=False)[1].cancel(build)
    words = {"cancelled": "cancelled before it started", "requested": "its worker is stopping it"}
    _print(
        {"build_id": build, "outcome": outcome} if as_json else words.get(outcome, f"it had ended already: {outcome}")
    )


@app.command()
def builds(as_json: Json = False, limit: Annotated[int, typer.Option(min=1, max=1000)] = 20) -> None:
    """The newest builds on record."""
    from producer.render import builds_table

    found = _open(start=False)[1].builds(limit=limit)
    _print(
        [record.to_dict() for record in found] if as_json else builds_table(found) if found else "no builds on record"
    )


@app.command()
def plan(
    folder: Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False)],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it there.")] = None,
) -> None:
    """Turn a directory into a plan."""
    from producer.intake import directory_plan
    from shared.settings import load_settings

    text = (
        json.dumps(directory_plan(folder, max_bytes=load_settings().limits.plan_bytes), indent=2, ensure_ascii=False)
        + "\n"
    )
    if output:
        output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


@app.command()
def plugins(as_json: Json = False) -> None:
    """List what is loaded, from where, with which hooks."""
    from plugins.configured import configured_plugins
    from producer.render import table
    from shared.settings import load_settings

    found = configured_plugins(load_settings()).plugins
    if as_json:
        _print([plugin.__dict__ for plugin in found])
    elif not found:
        _print("no plugins loaded")
    else:
        rows = [("PLUGIN", "VERSION", "HOOKS", "SOURCE", "DESCRIPTION")]
        rows += [
            (
                item.name,
                item.version or "-",
                ",".join(item.hooks) or "-",
                item.source,
                "failed to load" if item.error else item.description,
            )
            for item in found
        ]
        _print(table(rows))


@app.command()
def farm(action: Annotated[str, typer.Argument(metavar="up|down|status")], as_json: Json = False) -> None:
    """The local farm: an embedded Valkey server and a worker."""
    from producer import local_farm
    from shared.errors import UsageError
    from shared.settings import load_settings

    settings = load_settings()
    if action == "up":
        url = local_farm.ensure(settings)
        _print({"url": url} if as_json else f"the local farm is up at {url}")
    elif action == "down":
        stopped = local_farm.down(settings)
        _print(
            {"stopped": stopped} if as_json else "the local farm is down" if stopped else "the local farm was not up"
        )
    elif action == "status":
        _farm_status(as_json=as_json)
    else:
        raise UsageError(f"farm {action!r} is not known", hint="farm up, farm down or farm status")


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5555, address: Annotated[str, typer.Option()] = "127.0.0.1"
) -> None:
    """Flower on the farm's broker, read-only, until interrupted."""
    settings, farm = _open()
    url = farm.url.replace("unix://", "redis+socket://", 1)
    options = json.dumps({"global_keyprefix": settings.broker.key_prefix})
    os.environ["CELERY_BROKER_URL"] = url
    code = (
        "import sys, json; from shared.broker import celery_app; "
        f"app = celery_app({url!r}, prefix=json.loads({options!r})['global_keyprefix']); "
        f"app.start(['flower', '--port={port}', '--address={address}', '--read_only'])"
    )
    from shared.installation import ROOT

    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-c", code])  # noqa: S606 - our own program


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine can do, and how to mend what is missing."""
    from producer import local_farm
    from producer.render import facts
    from shared.errors import OrchestratorError
    from shared.settings import config_file, load_settings

    settings = load_settings()
    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "configuration": str(config_file()),
        "state": str(settings.paths.state),
        "cache": str(settings.paths.cache),
        "sandbox": settings.sandbox.kind,
    }
    healthy = True
    try:
        found["broker"] = settings.broker.url or f"embedded ({local_farm.server_program()})"
        workers = _open()[1].workers()
        found["workers"] = [
            f"{w['worker']}: {', '.join(w['stacks'])}, {w['slots']} slots, sandbox {w['sandbox']}" for w in workers
        ]
        found["toolchains"] = {stack: text for w in workers for stack, text in w["toolchains"].items()}
    except OrchestratorError as error:
        healthy = False
        found["problem"] = str(error)
    _print({"healthy": healthy, **found} if as_json else facts(found))
    raise typer.Exit(0 if healthy else 3)


def run_app() -> None:
    """Run the command line; every error of ours ends in one message and its exit code."""
    from shared.errors import OrchestratorError

    try:
        app()
    except OrchestratorError as error:
        if "--json" in sys.argv:
            _print({"error": {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}})
        else:
            sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _open(*, start: bool = True) -> tuple[Settings, Farm]:
    from producer.client import Farm
    from shared.settings import load_settings

    settings = load_settings()
    return settings, Farm.open(settings, start=start)


def _plan(source: str, settings: Settings) -> Any:
    from producer.intake import read_plan

    return read_plan(source, max_bytes=settings.limits.plan_bytes)


def _farm_status(*, as_json: bool) -> None:
    from producer.render import table

    farm = _open(start=False)[1]
    workers = farm.workers()
    stacks = {stack: None for worker in workers for stack in worker["stacks"]}
    depths = farm.queue_depths(stacks)
    if as_json:
        _print({"workers": workers, "queues": depths})
        return
    rows = [("WORKER", "STACKS", "SLOTS", "RUNNING", "SANDBOX")]
    rows += [
        (w["worker"], ",".join(w["stacks"]), str(w["slots"]), str(len(w["running"])), w["sandbox"]) for w in workers
    ]
    _print(table(rows) + "\n" + "\n".join(f"queue {stack}: {depth} waiting" for stack, depth in depths.items()))


def _finish(result: BuildResult, *, as_json: bool) -> None:
    from producer.render import verdict

    if as_json:
        _print(result.to_dict())
    else:
        _print(verdict(result))
        if result.project_dir:
            _print(f"Project: {result.project_dir}\nStack:   {result.stack}\nRun:     {result.run_cmd or '-'}")
    raise typer.Exit(result.process_exit_code)


def _confirm_cancel() -> bool:
    try:
        return typer.confirm("\nCancel the build?", default=True, err=True)
    except typer.Abort:
        return True


def _print(value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
