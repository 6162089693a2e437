"""From a message to a verdict: claim the build it names, run it, report once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from plugins import PluginManager
from shared.delivery import archive
from shared.errors import OrchestratorError
from shared.records import Records, Refusal
from shared.result import BuildResult, Status
from worker.machine import Machine
from worker.ownership import LEASE_LOST, Ownership
from worker.pipeline import Job, execute, farm_fault
from worker.process import CancelToken
from worker.reporting import EventPump, StreamReporter
from worker.workspace import remove_tree

logger = logging.getLogger("orchestrator.worker")


@dataclass(frozen=True)
class Executor:
    """What a worker process needs to execute builds; safe to use from all its threads."""

    name: str
    machine: Machine
    records: Records
    plugins: PluginManager
    ownership: Ownership
    pump: EventPump

    def execute(self, build_id: str) -> str:
        """Run the build if it is to be had: how that ended, for the log. Does nothing for a stray or second message."""
        lease_s = self.machine.settings.records.lease_s
        try:
            claim = self.records.claim(build_id, worker=self.name, lease_s=lease_s)
        except OrchestratorError as error:
            logger.exception("build %s cannot be read", build_id)
            return f"unreadable: {error.message}"
        if isinstance(claim, Refusal):
            logger.info("build %s not taken: %s", build_id, claim.reason)
            return claim.reason
        job = Job(build_id, claim.plan, claim.attempt, claim.queued_at, claim.started_at, self.name)
        reporter = StreamReporter(claim, self.pump)
        cancel = CancelToken()
        self.ownership.hold(claim, cancel)
        try:
            result = self._result(job, reporter, cancel)
            if cancel.is_set and cancel.reason == LEASE_LOST:
                logger.warning("build %s: its lease was lost, the result is dropped", build_id)
                return LEASE_LOST
            finished = self.records.finish(claim, result, reporter.drain())
        finally:
            self.ownership.release(claim)
        if not finished:
            logger.warning("build %s: another result stands already", build_id)
            return "superseded"
        logger.info("build %s %s%s", build_id, result.status, f" ({result.cause})" if result.cause else "")
        return str(result.status)

    def _result(self, job: Job, reporter: StreamReporter, cancel: CancelToken) -> BuildResult:
        try:
            result = execute(job, self.machine, self.plugins, reporter, cancel)
        except Exception as error:
            logger.exception("build %s: the farm failed", job.build_id)
            return farm_fault(job, error)
        if result.project_dir and result.status is not Status.CANCELLED:
            self._keep(job, Path(result.project_dir))
        return result

    def _keep(self, job: Job, project: Path) -> None:
        """Make the project available to its submitter: on this machine's disk, or beside the record for another's."""
        settings = self.machine.settings
        if settings.broker.url and not settings.broker.url.startswith("unix://"):
            self.records.store_bundle(job.build_id, archive(project))
        prune(project.parent, keep=settings.worker.keep_projects)


def prune(folder: Path, *, keep: int) -> None:
    """Keep only the newest entries of a folder (build ids sort by time)."""
    for name in sorted(entry.name for entry in folder.iterdir())[:-keep]:
        remove_tree(folder / name)
