"""What the stages of one build share, and how each of them runs commands."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plugins import PluginManager
from shared.plan import Plan
from shared.result import Cause, EnvironmentUse, Output, StageResult, StageStatus
from shared.stacks.base import Command, EnvironmentSpec, FileTree, Layout, RunChoice, Stack
from shared.stacks.detection import Detection
from worker.machine import SANDBOX_CACHE, EffectiveLimits, Machine
from worker.process import CancelToken, ProcessLimits, ProcessResult
from worker.reporting import Reporter, stage_data
from worker.sandbox.base import Bind, Overlay, View
from worker.verdict import cache_is_corrupt, stage_end
from worker.workspace import Workspace


@dataclass
class Context:
    """One build on its way. The first group never changes; each of the others is set by the stage it names."""

    build_id: str
    attempt: int
    plan: Plan
    files: FileTree
    detection: Detection
    stack: Stack
    limits: EffectiveLimits
    machine: Machine
    workspace: Workspace
    reporter: Reporter
    cancel: CancelToken
    plugins: PluginManager
    deliver_to: Path | None

    layout: Layout = field(default_factory=Layout)  # prepare
    spec: EnvironmentSpec | None = None  # install
    environment: EnvironmentUse = field(default_factory=EnvironmentUse)  # install
    overlays: tuple[Overlay, ...] = ()  # install
    tool_binds: tuple[Bind, ...] = ()  # install
    pins: str = ""  # install
    run_choice: RunChoice = field(default_factory=lambda: RunChoice(None))  # run
    run_output: Output = field(default_factory=Output)  # run
    exit_code: int | None = None  # run
    failure_output: Output | None = None  # whichever failed
    project_dir: Path | None = None  # collect
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Add a warning to the result, once, and say it live."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.reporter.emit("note", {"text": text})

    def command_env(self, command: Command, *, user: bool = True) -> dict[str, str]:
        """The environment of one command: the operator's, the stack's, the plan's and the command's own."""
        return {
            **self.machine.settings.sandbox.build_env,
            **self.stack.command_env(self.layout),
            **(self.plan.env if user else {}),
            **command.env,
        }

    def argv(self, command: Command) -> tuple[str, ...]:
        return command.argv or (self.machine.shell, "-c", command.shell)

    def view(self, command: Command, *, network: bool, cache: bool) -> View:
        """What a command of this build sees."""
        return View(
            workspace=self.workspace.project,
            env=self.command_env(command),
            binds=(*self.overlays, *self.tool_binds, *(self.cache_binds if cache else ())),
            network=network,
            tmp=self.workspace.tmp,
        )

    @property
    def cache_binds(self) -> tuple[Bind, ...]:
        """The download caches, where commands that fetch dependencies look for them."""
        if self.layout.cache != SANDBOX_CACHE:
            return ()
        return (Bind(self.machine.cache / "downloads", SANDBOX_CACHE, writable=True),)


class Stage:
    """One stage under way: its deadline, its events, and the commands it runs."""

    def __init__(self, context: Context, name: str, *, timeout_s: float | None = None) -> None:
        self.context = context
        self.name = name
        self._started = time.monotonic()
        self._deadline = None if timeout_s is None else self._started + timeout_s
        self._peak: int | None = None
        self._commands: list[str] = []
        self._first = context.reporter.emit("stage", {"name": name, "status": "started"})
        self._last = self._first

    def run(
        self, command: Command, view: View, *, failing: Cause, shown: bool = True
    ) -> tuple[ProcessResult, StageResult | None]:
        """Run one command to its end. The second is the stage's result when the command ended the stage."""
        process = self._run_once(command, view, shown=shown)
        if process.exit_code != 0 and command.retry_on_corrupt_cache and cache_is_corrupt(process.output):
            self.context.warn(f"the download cache was damaged: `{command.display}` was run again without it")
            again = Command(
                argv=(*command.argv, *command.retry_on_corrupt_cache), env=command.env, network=command.network
            )
            process = self._run_once(again, view, shown=shown)
        status, cause, detail = stage_end(process, failing)
        if status is StageStatus.FAILED and command.fallback is not None:
            self.context.warn(
                command.fallback_note or f"`{command.display}` failed; trying `{command.fallback.display}`"
            )
            return self.run(command.fallback, view, failing=failing, shown=shown)
        if status is StageStatus.SUCCEEDED:
            return process, None
        self.context.failure_output = process.output
        return process, self.result(
            status,
            cause=cause,
            detail=f"`{command.display}` {detail}",
            exit_code=process.exit_code,
            signal=process.signal,
            command=command.display,
        )

    def run_all(self, commands: Sequence[Command], *, failing: Cause, network: bool) -> StageResult | None:
        """Run commands in order; the stage's result when one of them ended it, else None."""
        for command in commands:
            view = self.context.view(command, network=network, cache=True)
            _, ended = self.run(command, view, failing=failing)
            if ended:
                return ended
        return None

    def _run_once(self, command: Command, view: View, *, shown: bool) -> ProcessResult:
        context = self.context
        if shown:
            self._commands.append(command.display)
            self._last = context.reporter.emit("command", {"stage": self.name, "command": command.display})

        def output(stream: str, chunk: bytes) -> None:
            data = {"stage": self.name, "stream": stream, "text": chunk.decode("utf-8", "replace")}
            self._last = context.reporter.emit("output", data)

        limits = ProcessLimits(
            timeout_s=self.remaining_s,
            idle_timeout_s=context.limits.idle_timeout_s,
            output_bytes=context.limits.output_bytes,
        )
        process = context.machine.sandbox.run(view, context.argv(command), limits, output, context.cancel)
        if process.peak_memory_bytes is not None:
            self._peak = max(self._peak or 0, process.peak_memory_bytes)
        return process

    @property
    def remaining_s(self) -> float | None:
        """Seconds to the stage's deadline; never 0, so that the process that meets it says so."""
        return None if self._deadline is None else max(0.01, self._deadline - time.monotonic())

    @property
    def given_up(self) -> bool:
        """Whether nothing should be waited for any more: cancelled, or past the deadline."""
        return self.context.cancel.is_set or (self._deadline is not None and time.monotonic() >= self._deadline)

    def result(
        self,
        status: StageStatus = StageStatus.SUCCEEDED,
        *,
        cause: Cause | None = None,
        detail: str = "",
        command: str = "",
        exit_code: int | None = None,
        signal: str | None = None,
        cached: bool = False,
    ) -> StageResult:
        """Close the stage and report it."""
        result = StageResult(
            name=self.name,
            status=status,
            cause=cause,
            detail=detail,
            command=command or " && ".join(self._commands),
            exit_code=exit_code,
            signal=signal,
            cached=cached,
            seconds=round(time.monotonic() - self._started, 4),
            peak_memory_bytes=self._peak,
            log_start=self._first,
            log_end=self._last,
        )
        self.context.reporter.emit("stage", stage_data(result))
        return result


def skipped(context: Context, name: str, why: str) -> StageResult:
    """A stage with nothing to do."""
    result = StageResult(name=name, status=StageStatus.SKIPPED, detail=why)
    context.reporter.emit("stage", stage_data(result))
    return result


def environment_view(
    context: Context, command: Command, project: Path, *, binds: tuple[Bind, ...], env: Mapping[str, str] | None = None
) -> View:
    """What a command that builds something shared sees: only the files that are in its key, nothing of this plan."""
    return View(
        workspace=project,
        env=context.command_env(command, user=False) if env is None else env,
        binds=(*binds, *context.cache_binds),
        network=context.limits.network != "none",
    )
