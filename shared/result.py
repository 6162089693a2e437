"""BuildResult: the wire format out, and what an agent acts on."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field


class Status(StrEnum):
    """How a build stands. The last six are terminal."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    LOST = "lost"

    @property
    def terminal(self) -> bool:
        return self not in (Status.QUEUED, Status.RUNNING)


class Cause(StrEnum):
    """Whose fault it was, when a build did not succeed."""

    USER_CODE = "user_code"
    DEPENDENCY = "dependency"
    REGISTRY = "registry"
    MEMORY = "memory"
    DISK = "disk"
    TIMEOUT = "timeout"
    NO_OUTPUT = "no_output"
    POLICY = "policy"
    CANCELLED = "cancelled"
    UNSATISFIABLE = "unsatisfiable"
    FARM = "farm"


class Advice(StrEnum):
    """What the submitter should do next."""

    FIX_CODE = "fix_code"
    RAISE_LIMIT = "raise_limit"
    RETRY = "retry"
    NONE = "none"


ADVICE = {
    Cause.USER_CODE: Advice.FIX_CODE,
    Cause.DEPENDENCY: Advice.FIX_CODE,
    Cause.REGISTRY: Advice.RETRY,
    Cause.MEMORY: Advice.RAISE_LIMIT,
    Cause.DISK: Advice.RAISE_LIMIT,
    Cause.TIMEOUT: Advice.RAISE_LIMIT,
    Cause.NO_OUTPUT: Advice.RAISE_LIMIT,
    Cause.POLICY: Advice.NONE,
    Cause.CANCELLED: Advice.NONE,
    Cause.UNSATISFIABLE: Advice.NONE,
    Cause.FARM: Advice.RETRY,
}

STAGES = ("prepare", "install", "build", "run", "collect")


class StageStatus(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore")  # an older reader meets a newer writer's fields


class EnvironmentUse(_Model):
    """Which environment a build used. `outcome`: hit, miss (built and kept), private (built, not kept) or none."""

    key: str = ""
    outcome: str = "none"
    reason: str = ""


class StageResult(_Model):
    """One stage's end.

    `log_start` and `log_end` are the numbers (`n`) of the stage's first and last events in the build's stream.
    """

    name: str
    status: StageStatus
    command: str = ""
    exit_code: int | None = None
    signal: str | None = None
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    cached: bool = False
    cause: Cause | None = None
    detail: str = ""
    log_start: int = 0
    log_end: int = 0


class Output(_Model):
    """The bounded output of a stage: its first and last bytes as text, and how much was dropped between them."""

    head: str = ""
    tail: str = ""
    dropped_bytes: int = 0
    total_bytes: int = 0

    @property
    def text(self) -> str:
        if not self.dropped_bytes:
            return self.head + self.tail
        return f"{self.head}\n[… {self.dropped_bytes:,} bytes dropped …]\n{self.tail}"


class CheckResult(_Model):
    name: str
    passed: bool
    detail: str = ""


class Artifact(_Model):
    path: str
    size_bytes: int
    sha256: str


class Attempt(_Model):
    """One worker's try at the build, and why it ended."""

    number: int
    worker: str
    started_at: float
    finished_at: float | None = None
    reason: str = ""


class BuildResult(_Model):
    """The verdict of one build."""

    build_id: str
    name: str = ""
    status: Status
    cause: Cause | None = None
    advice: Advice = Advice.NONE
    message: str = ""
    stack: str = ""
    stack_reason: str = ""
    warnings: list[str] = Field(default_factory=list)
    toolchain: dict[str, str] = Field(default_factory=dict)
    environment: EnvironmentUse = Field(default_factory=EnvironmentUse)
    stages: list[StageResult] = Field(default_factory=list)
    output: Output = Field(default_factory=Output)
    failure_output: Output | None = None
    exit_code: int | None = None
    checks: list[CheckResult] = Field(default_factory=list)
    artifacts: list[Artifact] = Field(default_factory=list)
    project_dir: str = ""
    venv: str = ""
    run_cmd: str = ""
    attempts: list[Attempt] = Field(default_factory=list)
    worker: str = ""
    sandbox: str = ""
    queued_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    plugin_notes: list[str] = Field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        return self.status is Status.SUCCEEDED

    @property
    def process_exit_code(self) -> int:
        """The exit code a command that waited for this build ends with (DESIGN.md, Commands)."""
        if self.status is Status.SUCCEEDED:
            return 0
        if self.status is Status.CANCELLED:
            return 4
        if self.status is Status.LOST or self.cause in (Cause.FARM, Cause.UNSATISFIABLE):
            return 3
        return 1

    @classmethod
    def refused(cls, build_id: str, *, name: str, cause: Cause, message: str, **more: Any) -> Self:
        """A build that ended before it ran a stage."""
        status = Status.CANCELLED if cause is Cause.CANCELLED else Status.REJECTED
        return cls(
            build_id=build_id, name=name, status=status, cause=cause, advice=ADVICE[cause], message=message, **more
        )

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data: what plugins and `--json` are given."""
        return self.model_dump(mode="json")
