"""Whose fault a failure was: user's code, dependency, registry, limit or farm.

Installers say it in words only, so their last output is read. The order matters: an unreachable registry makes every
resolver also say that it found no solution.
"""

from __future__ import annotations

import re

from shared.result import Cause, Output, StageResult, StageStatus, Status
from worker.process import Ended, ProcessResult

_REGISTRY = re.compile(
    r"""error\ sending\ request | dns\ error | temporary\ failure\ in\ name\ resolution | name\ or\ service\ not\ known
    | could\ not\ resolve\ host | connection\ (refused|reset|timed\ out|aborted) | network\ is\ unreachable
    | newconnectionerror | connecttimeout | readtimeout | read\ timed\ out | max\ retries\ exceeded
    | request\ timed\ out
    | operation\ timed\ out | tls\ handshake | certificate | \b(500|502|503|504)\ (internal|bad|service|gateway|server)
    | status\ code:?\ 5\d\d | \(5\d\d\ | too\ many\ requests | \b429\b | network\ connectivity\ is\ disabled""",
    re.IGNORECASE | re.VERBOSE,
)
_BAD_MANIFEST = re.compile(
    r"toml\ parse\ error|invalid\ toml|tomldecodeerror|failed\ to\ parse:?\ `?pyproject|expected\ package\ name|"
    r"couldn't\ parse\ requirement|invalid\ requirement|not\ a\ valid\ (toml|json)".replace("\\ ", " "),
    re.IGNORECASE,
)
_CORRUPT_CACHE = re.compile(
    r"corrupt|invalid zip|bad zip|failed to (read|deserialize|decode)[^\n]*cache|unexpected end of (file|archive)"
    r"|invalid gzip",
    re.IGNORECASE,
)
_DISK_FULL = re.compile(r"no space left on device|\(os error 28\)|ENOSPC|disk quota exceeded", re.IGNORECASE)


def install_cause(output: Output) -> Cause:
    """The cause behind a failed dependency command, from what it printed."""
    text = output.text
    if _DISK_FULL.search(text):
        return Cause.FARM
    if _REGISTRY.search(text):
        return Cause.REGISTRY
    if _BAD_MANIFEST.search(text):
        return Cause.USER_CODE
    return Cause.DEPENDENCY


def cache_is_corrupt(output: Output) -> bool:
    """Whether a command failed over a damaged download cache, so that one retry without it may help."""
    return bool(_CORRUPT_CACHE.search(output.text))


def stage_end(process: ProcessResult, failing: Cause) -> tuple[StageStatus, Cause | None, str]:
    """What one command's end means for its stage: status, cause and a sentence."""
    if process.ended is Ended.CANCELLED:
        return StageStatus.CANCELLED, Cause.CANCELLED, "cancelled"
    if process.ended is Ended.TIMEOUT:
        return StageStatus.TIMED_OUT, Cause.TIMEOUT, f"stopped at its deadline after {process.seconds:.1f} s"
    if process.ended is Ended.IDLE:
        return (
            StageStatus.TIMED_OUT,
            Cause.NO_OUTPUT,
            f"stopped: no output for too long ({process.seconds:.1f} s in all)",
        )
    if process.exit_code == 0:
        return StageStatus.SUCCEEDED, None, ""
    if process.signal:
        return StageStatus.FAILED, failing, f"killed by {process.signal}"
    if process.exit_code == 127:
        return StageStatus.FAILED, failing, "exited 127: a command was not found"
    return StageStatus.FAILED, failing, f"exited {process.exit_code}"


def build_status(stage: StageResult) -> Status:
    """The status of a build that a stage ended."""
    return {
        StageStatus.FAILED: Status.FAILED,
        StageStatus.TIMED_OUT: Status.TIMED_OUT,
        StageStatus.CANCELLED: Status.CANCELLED,
    }[stage.status]
