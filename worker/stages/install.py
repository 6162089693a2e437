"""Install: the environment of the project's dependencies, then what is the project's alone.

`post_install` runs over the mounted environment, so what it changes there stays in this build's own upper layer: it
may read any file of the project, which the environment's key does not cover, so it can never be part of the key.
"""

from __future__ import annotations

import os
from pathlib import Path

from shared.result import Cause, EnvironmentUse, StageResult, StageStatus
from shared.stacks.base import Command, EnvironmentSpec, Tool
from worker.environments import Environment, Failed, WaitAbandoned
from worker.sandbox.base import Bind, Overlay
from worker.stages.context import Context, Stage, environment_view
from worker.verdict import install_cause
from worker.workspace import write_files


def install(context: Context) -> StageResult:
    """Sets `context.spec`, `environment`, `overlays`, `tool_binds` and `pins`."""
    stage = Stage(context, "install", timeout_s=context.limits.install_timeout_s)
    plan, files, layout = context.plan, context.files, context.layout
    context.spec = context.stack.environment(plan, files, layout)
    try:
        ended = _environment(context, stage, context.spec) if context.spec else None
    except WaitAbandoned:
        if context.cancel.is_set:
            return stage.result(StageStatus.CANCELLED, cause=Cause.CANCELLED, detail="cancelled")
        return stage.result(
            StageStatus.TIMED_OUT,
            cause=Cause.TIMEOUT,
            detail="another build was still installing the same environment at the deadline",
        )
    if ended:
        return _blamed(ended, context)
    network = context.limits.network != "none"
    own = context.stack.install(plan, files, layout)
    ended = stage.run_all(own, failing=Cause.DEPENDENCY, network=network)
    if ended:
        return _blamed(ended, context)
    commands = [Command(shell=text) for text in plan.post_install]
    ended = stage.run_all(commands, failing=Cause.USER_CODE, network=network)
    if ended:
        return ended
    return stage.result(cached=context.environment.outcome == "hit" and not own and not commands)


def _blamed(ended: StageResult, context: Context) -> StageResult:
    """The stage's result with its cause read from what the installer printed."""
    if ended.cause is Cause.DEPENDENCY and ended.status is StageStatus.FAILED and context.failure_output:
        return ended.model_copy(update={"cause": install_cause(context.failure_output)})
    return ended


def _environment(context: Context, stage: Stage, spec: EnvironmentSpec) -> StageResult | None:
    """Get the environment from the store and mount it; the stage's result when it could not be had."""
    ended = _tools(context, stage, spec)
    if ended:
        return ended
    if not context.machine.sandbox.shares_environments:
        return _private_environment(context, stage, spec)

    def construct(staging: Path) -> str | Failed[StageResult]:
        project = staging / "project"
        project.mkdir()
        write_files(project, spec.files)
        for command in spec.commands:
            view = environment_view(context, command, project, binds=context.tool_binds)
            _, failed = stage.run(command, view, failing=Cause.DEPENDENCY)
            if failed:
                return Failed(failed)
        pins = _freeze(context, stage, spec, project)
        for path in spec.paths:
            built = project / path
            if built.exists():
                target = staging / "tree" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                built.rename(target)
        return pins

    found = context.machine.store.obtain(spec.key, construct, give_up=lambda: stage.given_up, why=spec.reason)
    if isinstance(found, Failed):
        return found.failure
    context.environment = EnvironmentUse(key=found.key, outcome=found.outcome, reason=found.reason)
    context.pins = found.pins
    context.overlays = tuple(_overlays(context, spec, found))
    return None


def _private_environment(context: Context, stage: Stage, spec: EnvironmentSpec) -> StageResult | None:
    """Install into the project itself, where the sandbox has no fixed path to share environments at."""
    for command in spec.commands:
        view = context.view(command, network=context.limits.network != "none", cache=True)
        _, failed = stage.run(command, view, failing=Cause.DEPENDENCY)
        if failed:
            return failed
    context.pins = _freeze(context, stage, spec, context.workspace.project)
    reason = context.machine.report.reason
    context.environment = EnvironmentUse(key=spec.key, outcome="private", reason=reason)
    return None


def _freeze(context: Context, stage: Stage, spec: EnvironmentSpec, project: Path) -> str:
    if spec.freeze is None:
        return ""
    view = environment_view(context, spec.freeze, project, binds=context.tool_binds)
    process, failed = stage.run(spec.freeze, view, failing=Cause.DEPENDENCY, shown=False)
    if failed:
        context.warn("the installed versions could not be listed, so run.sh installs from the project's own manifest")
        return ""
    return process.output.text


def _overlays(context: Context, spec: EnvironmentSpec, environment: Environment) -> list[Overlay]:
    overlays = []
    for number, path in enumerate(spec.paths):
        lower = environment.tree / path
        if not lower.is_dir():
            continue
        upper, work = context.workspace.layer(str(number))
        (context.workspace.project / path).mkdir(parents=True, exist_ok=True)
        overlays.append(Overlay(lower, upper, work, f"{context.layout.workspace}/{path}"))
    return overlays


def _tools(context: Context, stage: Stage, spec: EnvironmentSpec) -> StageResult | None:
    """Have the programs that the environment's commands need, installed on first use; sets `context.tool_binds`."""
    binds = []
    for tool in spec.tools:
        if not context.machine.sandbox.shares_environments:
            ended = _tool_in_place(context, stage, tool)
            if ended:
                return ended
            continue

        def construct(staging: Path, tool: Tool = tool) -> str | Failed[StageResult]:
            project = staging / "project"
            project.mkdir()
            bind = Bind(staging / "tree", tool.home, writable=True)
            for command in tool.install:
                _, failed = stage.run(
                    command, environment_view(context, command, project, binds=(bind,)), failing=Cause.REGISTRY
                )
                if failed:
                    return Failed(failed)
            return f"{tool.name}=={tool.version}"

        runtime = context.layout.runtime
        key = f"tool-{tool.name}-{tool.version}-{runtime.version if runtime else 'any'}"
        found = context.machine.store.obtain(key, construct, give_up=lambda: stage.given_up)
        if isinstance(found, Failed):
            return found.failure
        binds.append(Bind(found.tree, tool.home))
    context.tool_binds = tuple(binds)
    return None


def _tool_in_place(context: Context, stage: Stage, tool: Tool) -> StageResult | None:
    """Install a tool at its real path, for a sandbox that mounts nothing."""
    if Path(tool.path).exists():
        return None
    os.makedirs(tool.home, exist_ok=True)  # noqa: PTH103 - a path as the build sees it
    for command in tool.install:
        _, failed = stage.run(
            command, environment_view(context, command, context.workspace.project, binds=()), failing=Cause.REGISTRY
        )
        if failed:
            return failed
    return None
