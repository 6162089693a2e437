"""The worker process: its Celery application, what it announces, and its end.

The pool is threads: builds are subprocesses under our own deadlines and cancellation, so a process per slot buys
nothing and costs memory (figures: CELERY.md, Pool).
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from plugins.configured import configured_plugins
from shared import broker
from shared.errors import ConfigError
from shared.records import Records
from shared.settings import Settings
from worker.machine import Machine
from worker.ownership import Ownership
from worker.reporting import EventPump
from worker.tasks import Executor

if TYPE_CHECKING:
    from celery import Celery, Task
    from redis import Redis

logger = logging.getLogger("orchestrator.worker")

PROTOCOL_VERSION = 1


def worker_name() -> str:
    """A name that no other living worker has: host, process and a moment."""
    return f"{socket.gethostname()}-{os.getpid()}-{int(time.time() * 1000) % 1_000_000:06d}"


def serve(settings: Settings, *, stacks: Sequence[str] = (), local: bool = False) -> int:
    """Run a worker until it is told to stop; returns its exit code.

    `stacks` narrows what it subscribes to; naming one whose toolchain is missing is a `ConfigError`. The worker of a
    `local` farm ends after `farm.idle_exit_s` without a build and takes the farm's broker with it. Raises
    `SandboxError` when the sandbox does not hold: such a worker must not take work.
    """
    from redis.exceptions import RedisError

    url = settings.broker.url
    machine = Machine.open(settings)
    served = _served(machine, stacks)
    client = broker.connect(url, timeout_s=settings.broker.connect_timeout_s)
    try:
        client.ping()
    except (RedisError, OSError) as error:
        raise broker.broker_fault(error, url) from None
    records = Records(client, prefix=settings.broker.key_prefix, ttl_s=settings.records.ttl_s)
    plugins = configured_plugins(settings)
    name = worker_name()
    pump = EventPump(records)
    slots = settings.worker.slots
    announced = {
        "v": PROTOCOL_VERSION,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "platform": platform.platform(),
        "stacks": served,
        "toolchains": machine.versions(),
        "slots": slots,
        "sandbox": machine.sandbox.name,
        "shares_environments": machine.sandbox.shares_environments,
        "plugins": [plugin.name for plugin in plugins.plugins if not plugin.error],
        "started_at": time.time(),
    }
    ownership = Ownership(records, lease_s=settings.records.lease_s, beat=lambda: beat())
    executor = Executor(name, machine, records, plugins, ownership, pump)
    activity = Activity()
    refresher = VisibilityRefresher(records)

    def beat() -> None:
        records.announce(name, {**announced, "running": ownership.running})
        refresher.refresh()

    app = broker.celery_app(url, prefix=settings.broker.key_prefix)
    _register(app, executor, activity, refresher)
    beat()
    ownership.start()
    if local:
        activity.exit_when_idle(settings.farm.idle_exit_s)
    logger.info("worker %s serves %s with %d slots in sandbox %s", name, ", ".join(served), slots, machine.sandbox.name)
    worker = app.Worker(
        hostname=f"{'-'.join(served)}@{name}",
        pool="threads",
        concurrency=slots,
        queues=[broker.queue_name(stack) for stack in served],
        loglevel="WARNING",
        task_events=True,
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    try:
        worker.start()
    finally:
        ownership.stop()
        try:
            records.withdraw(name)
        except (RedisError, OSError) as error:  # it expires by itself
            logger.warning("announcement not withdrawn: %s", error)
        pump.stop()
        if local and activity.went_idle and not records.workers():
            _shut_down(client)
    logger.info("worker %s ended", name)
    return int(worker.exitcode or 0)


def _shut_down(client: Redis) -> None:
    """End the local farm's broker; its append-only file is the truth."""
    client.shutdown(save=False)


class Activity:
    """When this worker last had a build."""

    def __init__(self) -> None:
        self.went_idle = False
        self._running = 0
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running -= 1
            self._last = time.monotonic()

    def exit_when_idle(self, seconds: float) -> None:
        """Send this process TERM once it has been idle that long."""

        def watch() -> None:
            while True:
                time.sleep(min(1.0, seconds / 4))
                with self._lock:
                    idle = not self._running and time.monotonic() - self._last > seconds
                if idle:
                    logger.info("idle for %.0f s: ending", seconds)
                    self.went_idle = True
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

        threading.Thread(target=watch, name="idle-exit", daemon=True).start()


class VisibilityRefresher:
    """Keeps the messages of running builds invisible for as long as they run, so that the visibility timeout can be
    seconds while builds last minutes (CELERY.md)."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._tags: set[str] = set()
        self._lock = threading.Lock()

    def add(self, tag: str) -> None:
        with self._lock:
            self._tags.add(tag)

    def remove(self, tag: str) -> None:
        with self._lock:
            self._tags.discard(tag)

    def refresh(self) -> None:
        with self._lock:
            tags = dict.fromkeys(self._tags, time.time())
        if tags:
            self._records.client.zadd(f"{self._records.prefix}unacked_index", tags, xx=True)


def _register(app: Celery, executor: Executor, activity: Activity, refresher: VisibilityRefresher) -> None:
    @app.task(name=broker.TASK_NAME, bind=True)  # type: ignore[untyped-decorator]
    def build(task: Task, build_id: str) -> str:
        tag = (task.request.properties or {}).get("delivery_tag") or ""
        refresher.add(tag)
        try:
            with activity:
                return executor.execute(build_id)
        finally:
            refresher.remove(tag)


def _served(machine: Machine, named: Sequence[str]) -> list[str]:
    have = machine.stacks
    missing = [stack for stack in named if stack not in have]
    if missing:
        raise ConfigError(
            f"no toolchain here for {', '.join(missing)}",
            hint=f"this machine can serve: {', '.join(have) or 'nothing'}; see `orchestrator doctor`",
        )
    if not have:
        raise ConfigError("no toolchain of any stack was found here", hint="see `orchestrator doctor`")
    return [stack for stack in have if not named or stack in named]


def configure_logging(*, verbose: bool = False) -> None:
    """Log to standard error, one line an event."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("celery").setLevel(logging.WARNING)
    logging.getLogger("kombu").setLevel(logging.WARNING)
