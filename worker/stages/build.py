"""Build: compile what has to be compiled."""

from __future__ import annotations

from shared.result import Cause, StageResult
from worker.stages.context import Context, Stage, skipped


def build(context: Context) -> StageResult:
    """Run the stack's build commands; skipped when it has none."""
    commands = context.stack.build(context.plan, context.files, context.layout)
    if not commands:
        return skipped(context, "build", f"{context.stack.NAME} projects of this kind need no build")
    stage = Stage(context, "build", timeout_s=context.limits.build_timeout_s)
    ended = stage.run_all(commands, failing=Cause.USER_CODE, network=context.limits.network != "none")
    return ended or stage.result()
