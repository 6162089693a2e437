"""Prepare: write the project's files and choose its runtime."""

from __future__ import annotations

from dataclasses import replace

from shared.result import Cause, StageResult, StageStatus
from worker.stages.context import Context, Stage


def prepare(context: Context) -> StageResult:
    """Sets `context.layout`."""
    stage = Stage(context, "prepare")
    present = context.machine.runtimes.get(context.stack.NAME, ())
    choice = context.stack.choose_runtime(context.plan, context.files, present)
    for warning in (*context.detection.warnings, *choice.warnings):
        context.warn(warning)
    if choice.runtime is None:
        here = ", ".join(runtime.version for runtime in present) or "none"
        detail = f"{context.stack.NAME} {choice.wanted} is wanted, this worker has {here}"
        return stage.result(StageStatus.FAILED, cause=Cause.UNSATISFIABLE, detail=detail)
    context.layout = replace(context.machine.layout(context.workspace.project), runtime=choice.runtime)
    context.workspace.write_plan(context.plan)
    return stage.result()
