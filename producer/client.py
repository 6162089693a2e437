"""Farm: submit, follow, wait, cancel, fetch. The one way in for CLI, API and agents."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from shared import broker
from shared.delivery import deliver, unpack
from shared.errors import BrokerError, FarmError, OrchestratorError, UsageError
from shared.plan import Plan, slugify
from shared.records import END, BuildRecord, Event, Records, new_build_id
from shared.result import BuildResult, Cause
from shared.settings import Settings
from shared.stacks.base import FileTree
from shared.stacks.detection import Detection, detect

POLL_S = 2.0
RECONNECT_S = 30.0
T = TypeVar("T")


@dataclass(frozen=True)
class BuildHandle:
    """A submitted build."""

    build_id: str
    farm: Farm

    def status(self) -> BuildRecord:
        return self.farm.status(self.build_id)

    def follow(self, *, after: str = "0") -> Iterator[Event]:
        """The build's events from a cursor on, until it ends."""
        return self.farm.follow(self.build_id, after=after)

    def wait(self, timeout_s: float | None = None) -> BuildResult:
        """The result once there is one. Raises `TimeoutError` when it takes longer than `timeout_s`."""
        return self.farm.wait(self.build_id, timeout_s=timeout_s)

    def result(self) -> BuildResult | None:
        return self.farm.result(self.build_id)

    def cancel(self) -> str:
        return self.farm.cancel(self.build_id)


class Farm:
    """A farm reached through its broker. Everything raises `BrokerError` when the broker cannot be used."""

    def __init__(self, settings: Settings, url: str, *, revive: Callable[[], object] | None = None) -> None:
        self.settings = settings
        self.url = url
        self._revive = revive
        client = broker.connect(url, timeout_s=settings.broker.connect_timeout_s)
        self.records = Records(client, prefix=settings.broker.key_prefix, ttl_s=settings.records.ttl_s)

    @classmethod
    def open(cls, settings: Settings, *, start: bool = True) -> Farm:
        """The configured farm; without `broker.url` the local one, started if need be (and `start`)."""
        if settings.broker.url:
            return cls(settings, settings.broker.url)
        from producer import local_farm

        if start:
            return cls(settings, local_farm.ensure(settings), revive=lambda: local_farm.ensure(settings))
        url = local_farm.running_url(settings)
        if url is None:
            raise FarmError("the local farm is not running", hint="start it with `orchestrator farm up`")
        return cls(settings, url)

    @property
    def local(self) -> bool:
        return self._revive is not None

    def submit(self, plan: Plan, *, queue_anyway: bool = False) -> BuildHandle:
        """Put a plan on its stack's queue. A plan that no live worker can build ends at once as `unsatisfiable`."""
        detection = detect(plan, FileTree.of(plan))
        build_id = new_build_id()
        title = f"{plan.slug} ({detection.stack}, {len(plan.files)} file{'' if len(plan.files) == 1 else 's'})"
        refused = None
        with self._errors():
            if not queue_anyway:
                refused = self._unsatisfiable(build_id, plan, detection)
            self.records.submit(
                build_id,
                plan,
                stack=detection.stack,
                title=title,
                queue=broker.queue_key(self.records.prefix, detection.stack, plan.priority),
                message=broker.build_message(
                    build_id,
                    stack=detection.stack,
                    title=title,
                    priority=plan.priority,
                    origin=f"{os.getpid()}@{socket.gethostname()}",
                ),
                refused=refused,
            )
        return BuildHandle(build_id, self)

    def _unsatisfiable(self, build_id: str, plan: Plan, detection: Detection) -> BuildResult | None:
        workers = self.records.workers()
        served = sorted({stack for worker in workers for stack in worker.get("stacks", [])})
        if detection.stack in served:
            return None
        have = f"{len(workers)} live, serving {', '.join(served)}" if workers else "none is live"
        message = f"no worker can build {detection.stack} projects (workers: {have}); --queue-anyway waits for one"
        now = time.time()
        return BuildResult.refused(
            build_id,
            name=plan.name,
            cause=Cause.UNSATISFIABLE,
            message=message,
            stack=detection.stack,
            stack_reason=detection.reason,
            queued_at=now,
            finished_at=now,
        )

    def status(self, build_id: str) -> BuildRecord:
        with self._errors():
            return self.records.get(build_id)

    def result(self, build_id: str) -> BuildResult | None:
        """The terminal result, None while there is none. Raises `BuildNotFound`."""
        with self._errors():
            result = self.records.result(build_id)
            if result is None:
                self.records.get(build_id)
            return result

    def builds(self, *, limit: int = 20) -> list[BuildRecord]:
        with self._errors():
            return self.records.newest(limit=limit)

    def workers(self) -> list[dict[str, Any]]:
        with self._errors():
            return self.records.workers()

    def queue_depths(self, stacks: Mapping[str, object]) -> dict[str, int]:
        with self._errors():
            return self.records.queue_depths({stack: broker.queue_keys(self.records.prefix, stack) for stack in stacks})

    def events(self, build_id: str, *, after: str = "0") -> list[Event]:
        """All events so far behind a cursor."""
        found: list[Event] = []
        with self._errors():
            self.records.get(build_id)
            while batch := self.records.events(build_id, after=after):
                found += batch
                after = batch[-1].cursor
        return found

    def follow(self, build_id: str, *, after: str = "0", timeout_s: float | None = None) -> Iterator[Event]:
        """Events behind a cursor as they come, until the build ends.

        A dropped connection is taken up again where it was, so no event is lost or repeated; a broker that stays away
        for `RECONNECT_S` is a `BrokerError`. Raises `BuildNotFound`, and `TimeoutError` after `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self.status(build_id)
        while True:
            read = partial(self.records.events, build_id, after=after, block_s=_wait_s(deadline))
            batch = self._patiently(read)
            for event in batch:
                after = event.cursor
                yield event
                if event.type == END:
                    return
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"build {build_id} has not ended within {timeout_s:g} s")
            if not batch:
                self._still_alive(build_id)

    def wait(self, build_id: str, *, timeout_s: float | None = None) -> BuildResult:
        """The result once there is one. Raises `TimeoutError`, `BuildNotFound`."""
        for _event in self.follow(build_id, timeout_s=timeout_s):
            pass
        result = self.result(build_id)
        if result is None:
            raise FarmError(f"build {build_id} ended without a result on record")
        return result

    def cancel(self, build_id: str) -> str:
        """Stop a build: 'cancelled', 'requested' (its worker is stopping it) or the terminal status it already had."""
        by = f"{_user()}@{socket.gethostname()}"
        with self._errors():
            record = self.records.get(build_id)
            result = BuildResult.refused(
                build_id,
                name=record.name,
                cause=Cause.CANCELLED,
                message=f"cancelled by {by} before it started",
                stack=record.stack,
                queued_at=record.queued_at,
                finished_at=time.time(),
            )
            return self.records.cancel(build_id, result, by=by)

    def fetch(self, build_id: str, output_dir: Path) -> tuple[Path, list[str]]:
        """Deliver a built project into a fresh folder below `output_dir`: the folder, and what was left behind.

        Raises `UsageError` when there is no project to be had.
        """
        result = self.result(build_id)
        if result is None:
            raise UsageError(f"build {build_id} has not ended yet", hint=f"orchestrator result {build_id} --wait")
        if not result.project_dir:
            raise UsageError(f"build {build_id} ({result.status}) left no project")
        slug = slugify(result.name) or "project"
        source = Path(result.project_dir)
        if source.is_dir() and source.name == build_id:
            return deliver(source, output_dir, slug)
        with self._errors():
            chunks = self.records.bundle(build_id)
            first = next(chunks, None)
            if first is None:
                raise UsageError(f"the project of build {build_id} is no longer kept", hint="build it again")
            return unpack(_chain(first, chunks), output_dir, slug)

    # ------------------------------------------------------------------------------------------------------------

    def _still_alive(self, build_id: str) -> None:
        """The local farm may have gone idle or been stopped under a waiting client: have it up again."""
        if self._revive and not self._patiently(self.records.workers) and not self.status(build_id).status.terminal:
            self._revive()

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call, and call again while the broker is away, for `RECONNECT_S`."""
        from redis.exceptions import ConnectionError as RedisConnectionError
        from redis.exceptions import TimeoutError as RedisTimeoutError

        deadline = time.monotonic() + RECONNECT_S
        while True:
            try:
                with self._errors():
                    return call()
            except BrokerError as error:
                gone = isinstance(error.__cause__, RedisConnectionError | RedisTimeoutError | OSError)
                if not gone or time.monotonic() >= deadline:
                    raise
                if self._revive:
                    self._revive()
                time.sleep(0.2)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of redis-py as ours."""
        from redis.exceptions import RedisError

        try:
            yield
        except OrchestratorError:
            raise
        except (RedisError, OSError) as error:
            raise broker.broker_fault(error, self.url) from error


def _wait_s(deadline: float | None) -> float:
    return POLL_S if deadline is None else min(POLL_S, max(0.001, deadline - time.monotonic()))


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
