"""The whole error tree.

A build that fails is never an error here: it is a `BuildResult`. These are raised for what the caller got wrong
(`exit_code` 2) and for faults of the farm itself (`exit_code` 3). Every message says what failed and which value;
`hint` says what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class OrchestratorError(Exception):
    """Root of everything this project raises on purpose.

    `exit_code` is the process exit code a command ends with when the error reaches it.
    """

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(OrchestratorError):
    """The caller asked for something that makes no sense; nothing was done."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a plan: the field, what is wrong with it, what would be right."""

    field: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.field}: {self.message}" if self.field else self.message
        return f"{text} ({self.hint})" if self.hint else text


class PlanError(UsageError):
    """A plan that cannot be accepted. `problems` has every fault found, in the plan's order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        first = problems[0]
        where = f"{first.field}: " if first.field else ""
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"plan rejected: {where}{first.message}{more}", hint=first.hint)

    @classmethod
    def one(cls, field: str, message: str, hint: str = "") -> PlanError:
        return cls([Problem(field, message, hint)])


class ConfigError(UsageError):
    """Configuration that cannot be used: names the key, the file or variable, and the nearest right one."""


class BuildNotFound(UsageError):
    """No record of that build: a wrong id, or one that has expired."""

    def __init__(self, build_id: str) -> None:
        super().__init__(
            f"no build {build_id!r} is known here",
            hint="`orchestrator builds` lists the builds on record; records expire after records.ttl_s seconds",
        )


class FarmError(OrchestratorError):
    """A fault of the farm itself, never of the user's build. Only these are worth retrying."""


class BrokerError(FarmError):
    """The broker could not be reached, refused us or is out of memory."""


class RecordError(FarmError):
    """The record in Redis holds something this version cannot read."""


class SandboxError(FarmError):
    """The sandbox cannot be set up, or does not hold."""


class EnvironmentStoreError(FarmError):
    """The store of environments on this machine is damaged or cannot be written."""


class WorkspaceError(FarmError):
    """The directory of a build cannot be written (disk full, permissions)."""


class ShadowedInstallation(FarmError):
    """Another package of the same name was imported instead of ours."""
