"""The stages of one build, in order, and what each outcome means."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugins import PluginManager, PluginVeto
from shared.errors import PlanError
from shared.plan import Plan
from shared.result import ADVICE, Artifact, Attempt, BuildResult, Cause, StageResult, StageStatus, Status
from shared.stacks import STACKS
from shared.stacks.base import FileTree
from shared.stacks.detection import detect
from worker.machine import EffectiveLimits, Machine, unenforced
from worker.process import CancelToken
from worker.reporting import Reporter
from worker.stages.build import build
from worker.stages.collect import collect
from worker.stages.context import Context
from worker.stages.install import install
from worker.stages.prepare import prepare
from worker.stages.run import choose_run, run
from worker.verdict import build_status
from worker.workspace import Workspace

logger = logging.getLogger("orchestrator.worker")


@dataclass(frozen=True)
class Job:
    """One build to execute. Times are seconds since the epoch."""

    build_id: str
    plan: Plan
    attempt: int = 1
    queued_at: float = field(default_factory=time.time)
    started_at: float = field(default_factory=time.time)
    worker: str = "in-process"


class _Rejected(Exception):
    """A plugin or the border refused the build."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause
        self.reason = reason


def execute(
    job: Job,
    machine: Machine,
    plugins: PluginManager,
    reporter: Reporter,
    cancel: CancelToken,
    *,
    deliver_to: Path | None = None,
) -> BuildResult:
    """Run a build to its verdict. A user's failure is in the result; only faults of the farm raise (`FarmError`).

    With `deliver_to` the project is delivered into a fresh folder there, else kept on this machine under its build id.
    """
    notes: list[str] = []
    try:
        plan = _pre_execute(job, plugins, notes)
        context = _context(job, plan, machine, plugins, reporter, cancel, deliver_to)
    except _Rejected as rejected:
        return _refused(job, machine, rejected, notes)
    context.notes += notes
    try:
        result = _run_stages(job, context)
        _fire(context, "post_execute", plan=context.plan.to_dict(), result=result.to_dict())
        return result.model_copy(update={"plugin_notes": context.notes, "finished_at": time.time()})
    finally:
        context.workspace.destroy()


def _pre_execute(job: Job, plugins: PluginManager, notes: list[str]) -> Plan:
    """The plan as the plugins want it."""
    try:
        outcome = plugins.fire("pre_execute", plan=job.plan.to_dict(), build_id=job.build_id, attempt=job.attempt)
    except PluginVeto as veto:
        notes += veto.notes
        raise _Rejected(Cause.POLICY, _veto_text(veto)) from None
    notes += outcome.notes
    if outcome.value is None:
        return job.plan
    try:
        return Plan.parse(outcome.value)
    except PlanError as error:
        # Going on with the plan as submitted might do just what the plugin changed it to prevent.
        raise _Rejected(Cause.POLICY, f"a plugin returned a plan that is not valid: {error.problems[0]}") from None


def _context(
    job: Job,
    plan: Plan,
    machine: Machine,
    plugins: PluginManager,
    reporter: Reporter,
    cancel: CancelToken,
    deliver_to: Path | None,
) -> Context:
    files = FileTree.of(plan)
    try:
        detection = detect(plan, files)
    except PlanError as error:
        raise _Rejected(Cause.POLICY, str(error.problems[0])) from None
    if detection.folder:
        # Said plainly rather than built in the wrong place: environments are mounted at the plan's own folder.
        where = f"the {detection.stack} project is in the folder {detection.folder!r}"
        raise _Rejected(
            Cause.UNSATISFIABLE, f"{where}: submit that folder as the plan (nested projects are not built yet)"
        )
    if detection.stack not in machine.stacks:
        have = ", ".join(machine.stacks) or "none"
        raise _Rejected(Cause.UNSATISFIABLE, f"this worker cannot build {detection.stack} projects (it has: {have})")
    context = Context(
        build_id=job.build_id,
        attempt=job.attempt,
        plan=plan,
        files=files,
        detection=detection,
        stack=STACKS[detection.stack],
        limits=EffectiveLimits.of(plan, machine.settings),
        machine=machine,
        workspace=Workspace.create(machine.cache / "builds" / job.build_id),
        reporter=reporter,
        cancel=cancel,
        plugins=plugins,
        deliver_to=deliver_to,
    )
    for warning in unenforced(plan.limits):
        context.warn(warning)
    if not machine.report.isolated:
        context.warn(f"sandbox {machine.sandbox.name!r} does not isolate the build from this machine")
    if plan.service or plan.checks:
        context.warn("service and checks are not evaluated by this version: the run is judged by its exit code alone")
    return context


def _run_stages(job: Job, context: Context) -> BuildResult:
    stages: list[StageResult] = []
    artifacts: list[Artifact] = []
    message, status, cause = "", Status.SUCCEEDED, None
    built = True
    for stage in (prepare, install, build):
        stages.append(stage(context))
        if stages[-1].status not in (StageStatus.SUCCEEDED, StageStatus.SKIPPED):
            built = False
            break
        if context.cancel.is_set:
            stages[-1] = stages[-1].model_copy(update={"status": StageStatus.CANCELLED, "cause": Cause.CANCELLED})
            built = False
            break
    if built:
        choose_run(context)
        try:
            stages.append(_run_with_hooks(context))
        except PluginVeto as veto:
            context.notes += veto.notes
            status, cause, message = Status.REJECTED, Cause.POLICY, _veto_text(veto)
        else:
            collected, artifacts = collect(context)
            stages.append(collected)
    failed = next((stage for stage in stages if stage.status not in (StageStatus.SUCCEEDED, StageStatus.SKIPPED)), None)
    if failed:
        status, cause = build_status(failed), failed.cause
        message = f"{failed.name}: {failed.detail}"
    return _result(job, context, stages, artifacts, status, cause, message)


def _run_with_hooks(context: Context) -> StageResult:
    """The run stage between its hooks. Raises `PluginVeto`."""
    if context.run_choice.command is None:
        return run(context)
    project = context.workspace.project
    context.notes += context.plugins.fire(
        "pre_run", project_dir=project, build_id=context.build_id, attempt=context.attempt
    ).notes
    result = run(context)
    code = -1 if context.exit_code is None else context.exit_code
    _fire(context, "post_run", project_dir=project, return_code=code)
    return result


def _fire(context: Context, event: str, **values: Any) -> None:
    context.notes += context.plugins.fire(event, **values, build_id=context.build_id, attempt=context.attempt).notes


def _result(
    job: Job,
    context: Context,
    stages: list[StageResult],
    artifacts: list[Artifact],
    status: Status,
    cause: Cause | None,
    message: str,
) -> BuildResult:
    command = context.run_choice.command
    runtime = context.layout.runtime
    project_dir = str(context.project_dir or "")
    return BuildResult(
        build_id=job.build_id,
        name=context.plan.name,
        status=status,
        cause=cause,
        advice=ADVICE[cause] if cause else BuildResult.model_fields["advice"].default,
        message=message or _success_message(stages),
        stack=context.stack.NAME,
        stack_reason=context.detection.reason,
        warnings=context.warnings,
        toolchain={runtime.name: runtime.version} if runtime else {},
        environment=context.environment,
        stages=stages,
        output=context.run_output,
        failure_output=context.failure_output if cause and stages[-1].name != "collect" else None,
        exit_code=context.exit_code,
        artifacts=artifacts,
        project_dir=project_dir,
        venv=f"{project_dir}/.venv" if project_dir and context.spec and ".venv" in context.spec.paths else "",
        run_cmd=command.display if command else "",
        attempts=[Attempt(number=job.attempt, worker=job.worker, started_at=job.started_at)],
        worker=job.worker,
        sandbox=context.machine.sandbox.name,
        queued_at=job.queued_at,
        started_at=job.started_at,
    )


def _success_message(stages: list[StageResult]) -> str:
    ran = next((stage for stage in stages if stage.name == "run"), None)
    if ran is None or ran.status is StageStatus.SKIPPED:
        return "installed and built; nothing was run"
    return f"ran `{ran.command}` to exit 0"


def _refused(job: Job, machine: Machine, rejected: _Rejected, notes: list[str]) -> BuildResult:
    return BuildResult.refused(
        job.build_id,
        name=job.plan.name,
        cause=rejected.cause,
        message=rejected.reason,
        plugin_notes=notes,
        worker=job.worker,
        sandbox=machine.sandbox.name,
        queued_at=job.queued_at,
        started_at=job.started_at,
        finished_at=time.time(),
        attempts=[Attempt(number=job.attempt, worker=job.worker, started_at=job.started_at)],
    )


def farm_fault(job: Job, error: BaseException) -> BuildResult:
    """The result of a build that a fault of the farm ended: never blamed on its submitter."""
    return BuildResult(
        build_id=job.build_id,
        name=job.plan.name,
        status=Status.FAILED,
        cause=Cause.FARM,
        advice=ADVICE[Cause.FARM],
        message=f"the farm failed: {error}",
        worker=job.worker,
        queued_at=job.queued_at,
        started_at=job.started_at,
        finished_at=time.time(),
        attempts=[Attempt(number=job.attempt, worker=job.worker, started_at=job.started_at, reason=str(error))],
    )


def _veto_text(veto: PluginVeto) -> str:
    return f"plugin {veto.plugin!r} refused: {veto.reason}" if veto.plugin else f"a plugin refused: {veto.reason}"
