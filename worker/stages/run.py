"""Run: start the project and see how it ends."""

from __future__ import annotations

from shared.result import Cause, StageResult
from worker.stages.context import Context, Stage, skipped


def choose_run(context: Context) -> None:
    """Find out how the project is started. Sets `context.run_choice`."""
    context.run_choice = context.stack.run(context.plan, context.files, context.layout)
    for warning in context.run_choice.warnings:
        context.warn(warning)


def run(context: Context) -> StageResult:
    """Run the project's command. Sets `context.run_output` and `context.exit_code`."""
    command = context.run_choice.command
    if command is None:
        return skipped(context, "run", context.run_choice.reason or "nothing to start was found")
    stage = Stage(context, "run", timeout_s=context.limits.run_timeout_s)
    view = context.view(command, network=context.limits.network == "full", cache=False)
    process, ended = stage.run(command, view, failing=Cause.USER_CODE)
    context.run_output = process.output
    context.exit_code = process.exit_code
    return ended or stage.result(exit_code=process.exit_code)
