"""What a build says while it runs: stage changes, output and notes, as numbered events.

`Reporter` is told by the stages. `StreamReporter` sends events to the build's record in batches from one background
thread, so that no stage waits for the broker; what is not sent yet goes out with the terminal result.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from shared.records import Claim, Records
from shared.result import StageResult

logger = logging.getLogger("orchestrator.worker")

FLUSH_INTERVAL_S = 0.02
MAX_BATCH = 200

EventPair = tuple[str, Mapping[str, Any]]


class Reporter(Protocol):
    """Where a build's events go."""

    def emit(self, kind: str, data: Mapping[str, Any]) -> int:
        """Report one event; returns its number, counting from 1 within the attempt."""
        ...


class CallbackReporter:
    """Hands every event to a function: for builds in the caller's own process."""

    def __init__(self, callback: Callable[[str, Mapping[str, Any]], None] | None = None) -> None:
        self._callback = callback
        self._count = 0

    def emit(self, kind: str, data: Mapping[str, Any]) -> int:
        self._count += 1
        if self._callback:
            self._callback(kind, {**data, "n": self._count})
        return self._count


class StreamReporter:
    """Buffers a claimed build's events for an `EventPump` to send."""

    def __init__(self, claim: Claim, pump: EventPump) -> None:
        self.claim = claim
        self._pump = pump
        self._buffer: list[EventPair] = []
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._count = 0

    def emit(self, kind: str, data: Mapping[str, Any]) -> int:
        with self._lock:
            self._count += 1
            self._buffer.append((kind, {**data, "n": self._count, "attempt": self.claim.attempt}))
            number = self._count
        self._pump.wake(self)
        return number

    def send(self, records: Records) -> bool:
        """Send what is buffered, in order; False when the claim is no longer good. Broker errors pass through, and
        what was not accepted stays buffered."""
        with self._sending:
            while True:
                with self._lock:
                    batch = self._buffer[:MAX_BATCH]
                if not batch:
                    return True
                good = bool(records.append(self.claim, batch))
                with self._lock:
                    del self._buffer[: len(batch)]
                if not good:
                    return False

    def drain(self) -> list[EventPair]:
        """Take over what is still buffered, to send it with the terminal result."""
        with self._sending, self._lock:
            rest, self._buffer = self._buffer, []
        return rest


class EventPump:
    """One thread that sends the events of all builds of a worker."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._waiting: set[StreamReporter] = set()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="event-pump", daemon=True)
        self._thread.start()

    def wake(self, reporter: StreamReporter) -> None:
        with self._changed:
            self._waiting.add(reporter)
            self._changed.notify()

    def stop(self) -> None:
        """Stop after what is under way; unsent events belong to builds that report them with their result."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=5)

    def _loop(self) -> None:
        from redis.exceptions import RedisError

        pause = threading.Event()
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
            pause.wait(FLUSH_INTERVAL_S)  # let a burst gather into one round trip
            with self._changed:
                reporters, self._waiting = self._waiting, set()
            for reporter in reporters:
                try:
                    reporter.send(self._records)
                except (RedisError, OSError) as error:
                    logger.warning("events of %s are held back: %s", reporter.claim.build_id, error)
                    with self._changed:
                        self._waiting.add(reporter)
                    pause.wait(0.5)


def stage_data(result: StageResult) -> dict[str, Any]:
    """A finished stage as event data, without empty fields."""
    return result.model_dump(mode="json", exclude_defaults=True)
