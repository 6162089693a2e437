"""Who may run a build and report it: the lease on each running build, kept alive by one heartbeat.

A lease that cannot be renewed in time is as good as lost: the build is stopped before another worker may take it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from shared.records import CANCEL_CHANNEL, Claim, Records
from worker.process import CancelToken

logger = logging.getLogger("orchestrator.worker")

LEASE_LOST = "lease lost"


class Ownership:
    """The builds this worker process holds. One thread renews their leases, another hears of cancellations."""

    def __init__(self, records: Records, *, lease_s: float, beat: Callable[[], None] = lambda: None) -> None:
        self._records = records
        self._lease_s = lease_s
        self._beat = beat
        self._held: dict[str, tuple[Claim, CancelToken, float]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._renew_loop, name="heartbeat", daemon=True),
            threading.Thread(target=self._listen_loop, name="cancel-listener", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()

    def hold(self, claim: Claim, cancel: CancelToken) -> None:
        """Keep a claim's lease alive until `release`; `cancel` is set when it is cancelled or lost."""
        with self._lock:
            self._held[claim.build_id] = (claim, cancel, time.monotonic())
        if claim.cancel_requested:
            cancel.set(claim.cancel_requested)

    def release(self, claim: Claim) -> None:
        with self._lock:
            self._held.pop(claim.build_id, None)

    @property
    def running(self) -> list[str]:
        with self._lock:
            return sorted(self._held)

    def _renew_loop(self) -> None:
        from redis.exceptions import RedisError

        while not self._stop.wait(self._lease_s / 5):
            for claim, cancel, renewed in self._snapshot():
                try:
                    held, cancelled_by = self._records.renew(claim, lease_s=self._lease_s)
                except (RedisError, OSError) as error:
                    logger.warning("lease of %s not renewed: %s", claim.build_id, error)
                    if time.monotonic() - renewed > self._lease_s * 0.6:
                        cancel.set(LEASE_LOST)
                    continue
                if not held:
                    if claim.build_id in self.running:
                        cancel.set(LEASE_LOST)
                    continue
                with self._lock:
                    if claim.build_id in self._held:
                        self._held[claim.build_id] = (claim, cancel, time.monotonic())
                if cancelled_by:
                    cancel.set(cancelled_by)
            try:
                self._beat()
            except (RedisError, OSError) as error:
                logger.warning("announcement not sent: %s", error)

    def _listen_loop(self) -> None:
        from redis.exceptions import RedisError

        channel = self._records.prefix + CANCEL_CHANNEL
        while not self._stop.is_set():
            try:
                with self._records.client.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
                    pubsub.subscribe(channel)
                    while not self._stop.is_set():
                        message = pubsub.get_message(timeout=1.0)
                        if message:
                            self._cancel(bytes(message["data"]).decode())
            except (RedisError, OSError):
                self._stop.wait(1.0)  # the heartbeat sees the request in the record meanwhile

    def _cancel(self, build_id: str) -> None:
        with self._lock:
            held = self._held.get(build_id)
        if held:
            held[1].set("cancelled")

    def _snapshot(self) -> list[tuple[Claim, CancelToken, float]]:
        with self._lock:
            return list(self._held.values())
