"""The build record in Redis, its event stream, and every transition between states.

The record is the truth; a Celery message is only a nudge that names it. Each transition is one atomic script here and
nowhere else. A claim hands out a fencing token taken from the server's clock (never below the last one), and events and
the terminal result are accepted only with the current token; the terminal result is written once.

Keys, under the configured prefix: `build:ID` (hash), `plan:ID` and `result:ID` (compressed JSON), `events:ID` (stream),
`builds` (ids by time of submission), `worker:ID` (announcement, expiring) and `workers` (ids by last heartbeat).
"""

from __future__ import annotations

import json
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from shared.errors import BuildNotFound, RecordError
from shared.plan import Plan
from shared.result import BuildResult, Status

if TYPE_CHECKING:
    from redis import Redis

RECORD_VERSION = "1"
CANCEL_CHANNEL = "cancel"
MAX_EVENTS = 20_000  # a bound for safety; output is bounded by bytes long before
WORKER_TTL_S = 15
END = "end"

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"

# KEYS build plan events builds queue result; ARGV id plan message ttl result status field…
_SUBMIT = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local t = redis.call('TIME')
local now = t[1] .. '.' .. string.format('%06d', t[2])
redis.call('HSET', KEYS[1], 'queued_at', now, 'status', ARGV[6], unpack(ARGV, 7))
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[4])
redis.call('ZADD', KEYS[4], now, ARGV[1])
redis.call('XADD', KEYS[3], '*', 'type', 'state', 'data', '{"status":"queued"}')
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[1], 'finished_at', now)
  redis.call('SET', KEYS[6], ARGV[5], 'EX', ARGV[4])
  redis.call('XADD', KEYS[3], '*', 'type', 'end', 'data', '{"status":"' .. ARGV[6] .. '"}')
else
  redis.call('LPUSH', KEYS[5], ARGV[3])
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[3], ARGV[4])
return 1
"""

# KEYS build plan events; ARGV worker lease_us
_CLAIM = """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return {'unknown'} end
if status ~= 'queued' and status ~= 'running' then return {'finished'} end
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local held = tonumber(redis.call('HGET', KEYS[1], 'lease_until') or '0')
if status == 'running' and held > now then return {'held'} end
local last = tonumber(redis.call('HGET', KEYS[1], 'token') or '0')
local token = math.max(now, last + 1)
local stamp = t[1] .. '.' .. string.format('%06d', t[2])
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'status', 'running', 'worker', ARGV[1], 'token', string.format('%.0f', token),
  'lease_until', string.format('%.0f', now + ARGV[2]), 'claimed_at', stamp)
redis.call('HSETNX', KEYS[1], 'started_at', stamp)
redis.call('XADD', KEYS[3], '*', 'type', 'state', 'data',
  cjson.encode({status = 'running', worker = ARGV[1], attempt = attempt}))
return {'claimed', string.format('%.0f', token), tostring(attempt), redis.call('GET', KEYS[2]),
  redis.call('HGET', KEYS[1], 'queued_at'), stamp, redis.call('HGET', KEYS[1], 'cancel_requested') or ''}
"""

# KEYS build; ARGV token lease_us
_RENEW = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'status') ~= 'running' then
  return {'lost'}
end
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], 'lease_until', string.format('%.0f', t[1] * 1000000 + t[2] + ARGV[2]))
return {'held', redis.call('HGET', KEYS[1], 'cancel_requested') or ''}
"""

_APPEND = """
local function append(stream, first, last)
  local id = ''
  for i = first, last, 2 do
    id = redis.call('XADD', stream, 'MAXLEN', '~', LIMIT, '*', 'type', ARGV[i], 'data', ARGV[i + 1])
  end
  return id
end
""".replace("LIMIT", str(MAX_EVENTS))

# KEYS build events; ARGV token type data type data …
_EVENTS = (
    _APPEND
    + """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'status') ~= 'running' then
  return ''
end
return append(KEYS[2], 2, #ARGV)
"""
)

# KEYS build events result plan; ARGV token status result ttl type data …
_FINISH = (
    _APPEND
    + """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'status') ~= 'running' then
  return 0
end
append(KEYS[2], 5, #ARGV)
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'finished_at', t[1] .. '.' .. string.format('%06d', t[2]))
redis.call('HDEL', KEYS[1], 'lease_until')
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[4])
redis.call('XADD', KEYS[2], '*', 'type', 'end', 'data', '{"status":"' .. ARGV[2] .. '"}')
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('EXPIRE', KEYS[4], ARGV[4])
return 1
"""
)

# KEYS build events result; ARGV id result ttl channel by
_CANCEL = """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'unknown' end
local t = redis.call('TIME')
local now = t[1] .. '.' .. string.format('%06d', t[2])
if status == 'queued' then
  redis.call('HSET', KEYS[1], 'status', 'cancelled', 'finished_at', now, 'cancel_requested', ARGV[5])
  redis.call('SET', KEYS[3], ARGV[2], 'EX', ARGV[3])
  redis.call('XADD', KEYS[2], '*', 'type', 'end', 'data', '{"status":"cancelled"}')
  redis.call('EXPIRE', KEYS[1], ARGV[3])
  redis.call('EXPIRE', KEYS[2], ARGV[3])
  return 'cancelled'
end
if status == 'running' then
  redis.call('HSETNX', KEYS[1], 'cancel_requested', ARGV[5])
  redis.call('PUBLISH', ARGV[4], ARGV[1])
  return 'requested'
end
return status
"""


def new_build_id() -> str:
    """A build id: 26 characters, sorting by time of creation (the ULID layout, lower case)."""
    number = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


@dataclass(frozen=True)
class Event:
    """One entry of a build's stream. `cursor` is where to read on from."""

    cursor: str
    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class BuildRecord:
    """What the record says of a build right now. Times are seconds since the epoch by the broker's clock."""

    build_id: str
    name: str
    title: str
    stack: str
    status: Status
    attempt: int
    worker: str
    cancel_requested: str
    queued_at: float | None
    started_at: float | None
    finished_at: float | None

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "status": str(self.status)}


@dataclass(frozen=True)
class Claim:
    """The right to run a build and report on it."""

    build_id: str
    token: str
    attempt: int
    plan: Plan
    queued_at: float
    started_at: float
    cancel_requested: str


@dataclass(frozen=True)
class Refusal:
    """Why a claim was not given: unknown, finished or held."""

    reason: str


class Records:
    """All reading and writing of build records. Errors of the broker pass through as redis-py raises them."""

    def __init__(self, client: Redis, *, prefix: str, ttl_s: int) -> None:
        self.client = client
        self.prefix = prefix
        self.ttl_s = ttl_s
        register = client.register_script
        self._submit = register(_SUBMIT)
        self._claim = register(_CLAIM)
        self._renew = register(_RENEW)
        self._events = register(_EVENTS)
        self._finish = register(_FINISH)
        self._cancel = register(_CANCEL)

    # -- transitions ---------------------------------------------------------------------------------------------

    def submit(
        self,
        build_id: str,
        plan: Plan,
        *,
        stack: str,
        title: str,
        queue: str,
        message: bytes,
        refused: BuildResult | None = None,
    ) -> bool:
        """Store a build and put its message on its queue, in one step; False when the id is taken already.

        With `refused` the build is recorded as ended and nothing is queued.
        """
        fields = {
            "v": RECORD_VERSION,
            "name": plan.name,
            "title": title,
            "stack": stack,
            "digest": plan.digest,
            "queue": queue,
        }
        status = refused.status if refused else Status.QUEUED
        result = _packed(refused.model_dump_json().encode()) if refused else b""
        keys = [
            *self._keys(build_id, "build", "plan", "events"),
            f"{self.prefix}builds",
            queue,
            self._key("result", build_id),
        ]
        args: list[Any] = [build_id, _packed(plan.canonical), message, self.ttl_s, result, str(status)]
        args += [text for pair in fields.items() for text in pair]
        return bool(self._submit(keys=keys, args=args))

    def claim(self, build_id: str, *, worker: str, lease_s: float) -> Claim | Refusal:
        """Take a build to run it. Raises `RecordError` when its plan cannot be read."""
        reply = cast(
            "list[Any]",
            self._claim(keys=self._keys(build_id, "build", "plan", "events"), args=[worker, int(lease_s * 1e6)]),
        )
        outcome = _text(reply[0])
        if outcome != "claimed":
            return Refusal(outcome)
        token, attempt, plan, queued_at, started_at, cancelled = reply[1:]
        return Claim(
            build_id=build_id,
            token=_text(token),
            attempt=int(attempt),
            plan=_plan(build_id, plan),
            queued_at=float(queued_at or 0),
            started_at=float(started_at),
            cancel_requested=_text(cancelled),
        )

    def renew(self, claim: Claim, *, lease_s: float) -> tuple[bool, str]:
        """Prolong a lease: whether it is still held, and who asked to cancel ('' for nobody)."""
        reply = cast(
            "list[Any]", self._renew(keys=self._keys(claim.build_id, "build"), args=[claim.token, int(lease_s * 1e6)])
        )
        held = _text(reply[0]) == "held"
        return held, _text(reply[1]) if held else ""

    def append(self, claim: Claim, events: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """Add events to the build's stream: the last one's cursor, '' when the claim is no longer good."""
        reply = self._events(keys=self._keys(claim.build_id, "build", "events"), args=[claim.token, *_flat(events)])
        return _text(reply)

    def finish(self, claim: Claim, result: BuildResult, events: Sequence[tuple[str, Mapping[str, Any]]] = ()) -> bool:
        """Write the terminal result, once; False when the claim is no longer good or the build has ended."""
        args: list[Any] = [
            claim.token,
            str(result.status),
            _packed(result.model_dump_json().encode()),
            self.ttl_s,
            *_flat(events),
        ]
        return bool(self._finish(keys=self._keys(claim.build_id, "build", "events", "result", "plan"), args=args))

    def cancel(self, build_id: str, result: BuildResult, *, by: str) -> str:
        """Cancel a build: 'cancelled' (it had not started; `result` is its result), 'requested' (its worker stops it)
        or the terminal status it already has. Raises `BuildNotFound`."""
        reply = _text(
            self._cancel(
                keys=self._keys(build_id, "build", "events", "result"),
                args=[
                    build_id,
                    _packed(result.model_dump_json().encode()),
                    self.ttl_s,
                    self.prefix + CANCEL_CHANNEL,
                    by,
                ],
            )
        )
        if reply == "unknown":
            raise BuildNotFound(build_id)
        return reply

    # -- reading -------------------------------------------------------------------------------------------------

    def get(self, build_id: str) -> BuildRecord:
        """The record of a build. Raises `BuildNotFound`."""
        return _record(build_id, cast("dict[bytes, bytes]", self.client.hgetall(self._key("build", build_id))))

    def plan(self, build_id: str) -> Plan:
        blob = self.client.get(self._key("plan", build_id))
        if blob is None:
            raise BuildNotFound(build_id)
        return _plan(build_id, cast("bytes", blob))

    def result(self, build_id: str) -> BuildResult | None:
        """The terminal result, None while there is none. Raises `RecordError` when it cannot be read."""
        blob = cast("bytes | None", self.client.get(self._key("result", build_id)))
        if blob is None:
            return None
        try:
            return BuildResult.model_validate_json(zlib.decompress(blob))
        except ValueError as error:
            raise RecordError(f"the result of build {build_id} cannot be read: {error}") from None
        except zlib.error as error:
            raise RecordError(f"the result of build {build_id} is damaged: {error}") from None

    def events(self, build_id: str, *, after: str = "0", block_s: float | None = None, limit: int = 500) -> list[Event]:
        """Events behind a cursor, oldest first; waits up to `block_s` for the first one (None: not at all)."""
        block = None if block_s is None else max(1, int(block_s * 1000))
        reply: Any = self.client.xread({self._key("events", build_id): after}, count=limit, block=block)
        entries = (
            cast("list[Any]", next(iter(reply.values()))[0] if isinstance(reply, dict) else reply[0][1])
            if reply
            else []
        )
        return [Event(_text(cursor), _text(fields[b"type"]), json.loads(fields[b"data"])) for cursor, fields in entries]

    def newest(self, *, limit: int = 20) -> list[BuildRecord]:
        """The newest builds on record, newest first."""
        index = f"{self.prefix}builds"
        found: list[BuildRecord] = []
        start = 0
        while len(found) < limit:
            ids = [_text(item) for item in cast("list[bytes]", self.client.zrevrange(index, start, start + limit - 1))]
            if not ids:
                break
            start += len(ids)
            pipe = self.client.pipeline(transaction=False)
            for build_id in ids:
                pipe.hgetall(self._key("build", build_id))
            expired = []
            for build_id, fields in zip(ids, pipe.execute(), strict=True):
                if fields:
                    found.append(_record(build_id, fields))
                else:
                    expired.append(build_id)
            if expired:
                self.client.zrem(index, *expired)
                start -= len(expired)
        return found[:limit]

    # -- workers -------------------------------------------------------------------------------------------------

    def announce(self, worker: str, facts: Mapping[str, Any]) -> None:
        """Say that a worker is alive, and what it can do; good for `WORKER_TTL_S`."""
        now = self._now()
        pipe = self.client.pipeline(transaction=False)
        pipe.set(self._key("worker", worker), json.dumps({**facts, "seen_at": now}), ex=WORKER_TTL_S)
        pipe.zadd(f"{self.prefix}workers", {worker: now})
        pipe.zremrangebyscore(f"{self.prefix}workers", 0, now - 10 * WORKER_TTL_S)
        pipe.execute()

    def withdraw(self, worker: str) -> None:
        """Take a worker's announcement back."""
        self.client.delete(self._key("worker", worker))
        self.client.zrem(f"{self.prefix}workers", worker)

    def workers(self) -> list[dict[str, Any]]:
        """The announcements of the live workers, by name."""
        ids = sorted(_text(item) for item in cast("list[bytes]", self.client.zrange(f"{self.prefix}workers", 0, -1)))
        if not ids:
            return []
        blobs = cast("list[bytes | None]", self.client.mget([self._key("worker", worker) for worker in ids]))
        return [{"worker": worker, **json.loads(blob)} for worker, blob in zip(ids, blobs, strict=True) if blob]

    def queue_depths(self, queues: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """How many messages wait, by name, over each name's lists."""
        pipe = self.client.pipeline(transaction=False)
        for keys in queues.values():
            for key in keys:
                pipe.llen(key)
        lengths = iter(pipe.execute())
        return {name: sum(next(lengths) for _ in keys) for name, keys in queues.items()}

    # -- project bundles -----------------------------------------------------------------------------------------

    def store_bundle(self, build_id: str, chunks: Iterator[bytes]) -> None:
        """Keep a project's archive beside its record, for submitters on other machines."""
        key = self._key("bundle", build_id)
        for chunk in chunks:
            self.client.rpush(key, chunk)
        self.client.expire(key, self.ttl_s)

    def bundle(self, build_id: str) -> Iterator[bytes]:
        """The chunks of a project's archive; nothing when there is none."""
        key = self._key("bundle", build_id)
        index = 0
        while (chunk := self.client.lindex(key, index)) is not None:
            yield cast("bytes", chunk)
            index += 1

    # -- keys ----------------------------------------------------------------------------------------------------

    def _key(self, kind: str, name: str) -> str:
        return f"{self.prefix}{kind}:{name}"

    def _keys(self, build_id: str, *kinds: str) -> list[str]:
        return [self._key(kind, build_id) for kind in kinds]

    def _now(self) -> float:
        seconds, micros = self.client.time()
        return seconds + micros / 1e6


def _packed(data: bytes) -> bytes:
    return zlib.compress(data, 1)


def _plan(build_id: str, blob: bytes | None) -> Plan:
    if not blob:
        raise RecordError(f"the plan of build {build_id} is gone from its record")
    try:
        return Plan.parse_json(zlib.decompress(blob))
    except zlib.error as error:
        raise RecordError(f"the plan of build {build_id} is damaged: {error}") from None


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _flat(events: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    return [text for kind, data in events for text in (kind, json.dumps(data, separators=(",", ":")))]


def _record(build_id: str, fields: Mapping[bytes, bytes]) -> BuildRecord:
    if not fields:
        raise BuildNotFound(build_id)

    def text(name: str) -> str:
        return _text(fields.get(name.encode(), b""))

    def moment(name: str) -> float | None:
        return float(text(name)) if text(name) else None

    try:
        return BuildRecord(
            build_id=build_id,
            name=text("name"),
            title=text("title"),
            stack=text("stack"),
            status=Status(text("status")),
            attempt=int(text("attempt") or 0),
            worker=text("worker"),
            cancel_requested=text("cancel_requested"),
            queued_at=moment("queued_at"),
            started_at=moment("started_at"),
            finished_at=moment("finished_at"),
        )
    except ValueError as error:
        raise RecordError(f"the record of build {build_id} cannot be read: {error}") from None
