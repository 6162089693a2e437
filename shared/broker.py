"""The broker: connections, queues, and the message that tells a worker of a build.

A message carries a build id and a readable title, never the plan: the plan lives in the build's record
(`shared.records`), so queues stay small and Flower shows no code or secrets. Messages are written in Celery's protocol
2 as kombu's Redis transport lays it out, so that the record and its message are stored in one atomic script and
submitting needs no Celery import; `tests/integration/test_broker.py` holds this to what Celery itself writes.
Settings and their reasons: CELERY.md.
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shared.errors import BrokerError, ConfigError

if TYPE_CHECKING:
    from celery import Celery
    from redis import Redis

TASK_NAME = "orchestrator.build"
HIGHEST_PRIORITY = 9
_PRIORITY_SEPARATOR = "\x06\x16"  # kombu.transport.redis.Channel.sep
VISIBILITY_TIMEOUT_S = 60
SOCKET_TIMEOUT_S = 10


def queue_name(stack: str) -> str:
    """The Celery queue of a stack."""
    return f"build.{stack}"


def queue_key(prefix: str, stack: str, priority: int) -> str:
    """The Redis list behind a stack's queue at a plan's priority (kombu keeps a list for each; its 0 comes first)."""
    step = HIGHEST_PRIORITY - priority
    name = prefix + queue_name(stack)
    return f"{name}{_PRIORITY_SEPARATOR}{step}" if step else name


def queue_keys(prefix: str, stack: str) -> list[str]:
    """All lists of a stack's queue."""
    return [queue_key(prefix, stack, priority) for priority in range(HIGHEST_PRIORITY + 1)]


def build_message(build_id: str, *, stack: str, title: str, priority: int, origin: str) -> bytes:
    """The Celery task message for a build. `title` is what Flower shows as its arguments."""
    body = [[build_id], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    message = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": TASK_NAME,
            "id": build_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": build_id,
            "parent_id": None,
            "argsrepr": title,
            "kwargsrepr": "{}",
            "origin": origin,
            "ignore_result": True,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
        "properties": {
            "correlation_id": build_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue_name(stack)},
            "priority": HIGHEST_PRIORITY - priority,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return json.dumps(message).encode()


def connect(url: str, *, timeout_s: float = 5.0) -> Redis:
    """A client for a broker URL: `redis://`, `rediss://` or `unix:///path` (`redis+socket://` is the same).

    Connects on first use. Raises `ConfigError` for a URL of another kind.
    """
    from redis import Redis
    from redis.backoff import ExponentialBackoff
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import TimeoutError as RedisTimeoutError
    from redis.retry import Retry

    scheme = urlsplit(url).scheme
    if scheme not in ("redis", "rediss", "unix", "redis+socket"):
        raise ConfigError(f"broker.url {redacted(url)!r} is not understood", hint="redis://, rediss:// or unix:///path")
    options: dict[str, Any] = {
        "socket_connect_timeout": timeout_s,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
        "retry_on_error": [RedisConnectionError, RedisTimeoutError],
    }
    if scheme in ("redis", "rediss"):
        options |= {"socket_keepalive": True, "health_check_interval": 10}
    return Redis.from_url(url.replace("redis+socket://", "unix://"), **options)


def broker_fault(error: Exception, url: str) -> BrokerError:
    """What a redis-py error means to a person."""
    from redis import exceptions

    text = str(error)
    where = redacted(url)
    if isinstance(error, exceptions.AuthenticationError) or "WRONGPASS" in text or "NOAUTH" in text:
        return BrokerError(
            f"the broker at {where} refused the credentials: {text}", hint="check broker.url's user and password"
        )
    if isinstance(error, exceptions.OutOfMemoryError) or text.startswith("OOM"):
        return BrokerError(
            f"the broker at {where} is out of memory", hint="raise its maxmemory or shorten records.ttl_s"
        )
    if isinstance(error, exceptions.NoPermissionError):
        return BrokerError(f"the broker at {where} does not permit this: {text}", hint="check the ACL of its user")
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError | OSError):
        return BrokerError(
            f"cannot reach the broker at {where}: {text}",
            hint="is it running? `orchestrator doctor` checks; without broker.url the local farm is used",
        )
    return BrokerError(f"the broker at {where} failed: {text}")


def redacted(url: str) -> str:
    """A broker URL without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = parts.username or ""
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=f"{user}:***@{host}{port}", query="").geturl()


def celery_app(url: str, *, prefix: str) -> Celery:
    """The Celery application of both sides, configured as CELERY.md found necessary."""
    from celery import Celery

    app = Celery("orchestrator", broker=url.replace("unix://", "redis+socket://", 1), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_acks_on_failure_or_timeout=True,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_create_missing_queues=True,
        task_send_sent_event=True,
        worker_send_task_events=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_proc_alive_timeout=30,
        worker_detect_quorum_queues=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": prefix,
            "priority_steps": list(range(HIGHEST_PRIORITY + 1)),
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 15,
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": 5,
            "socket_keepalive": not url.startswith(("unix://", "redis+socket://")),
            "health_check_interval": 10,
        },
    )
    return app
