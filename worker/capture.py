"""The bounded output of one process: what is kept, what is handed out live, and when."""

from __future__ import annotations

import math
from collections.abc import Callable

from shared.result import Output

OnOutput = Callable[[str, bytes], None]
"""Receives ("stdout" | "stderr" | "note", chunk)."""

FLUSH_BYTES = 8_192
FLUSH_S, FLUSH_MAX_S, FLUSH_GROWTH = 0.05, 1.0, 1.05
MAX_SEGMENTS = 16  # chunks one flush may make: two streams taking turns must not become an event a byte


class Capture:
    """Bounded output: live while the first half lasts, then only the last half is kept.

    Chunks hold whole UTF-8 characters, whatever the pipe cut them into.
    """

    def __init__(self, limit_bytes: int, on_output: OnOutput | None) -> None:
        self.flush_at = math.inf
        self._on_output = on_output
        self._head_left = limit_bytes // 2
        self._tail_limit = limit_bytes - limit_bytes // 2
        self._head, self._tail = bytearray(), bytearray()
        self._tail_streams: set[str] = set()
        self._tail_seen = self._total = 0
        self._partial: dict[str, bytes] = {}
        self._pending: list[tuple[str, bytearray]] = []
        self._pending_bytes = 0
        self._interval_s = FLUSH_S

    def feed(self, stream: str, data: bytes, now: float) -> None:
        data = self._partial.pop(stream, b"") + data
        end = _whole_characters(data)
        if end < len(data):
            self._partial[stream] = data[end:]
        self._keep(stream, data[:end], now)

    def flush_if_due(self, now: float) -> None:
        if now >= self.flush_at:
            self._flush()

    def finish(self) -> Output:
        """The end: hands out what is pending, the note and the tail."""
        for stream, rest in self._partial.items():
            self._keep(stream, rest, 0.0)
        self._partial = {}
        self._flush()
        if len(self._tail) > self._tail_limit:
            del self._tail[: len(self._tail) - self._tail_limit]
        if len(self._tail) < self._tail_seen:
            while self._tail and 0x80 <= self._tail[0] < 0xC0:
                del self._tail[0]
        dropped = self._tail_seen - len(self._tail)
        if self._on_output is not None:
            if dropped:
                self._on_output("note", f"\n[… {dropped:,} bytes dropped …]\n".encode())
            if self._tail:
                self._on_output("stderr" if self._tail_streams == {"stderr"} else "stdout", bytes(self._tail))
        return Output(
            head=self._head.decode(errors="replace"),
            tail=self._tail.decode(errors="replace"),
            dropped_bytes=dropped,
            total_bytes=self._total,
        )

    def _keep(self, stream: str, data: bytes, now: float) -> None:
        if not data:
            return
        self._total += len(data)
        if self._head_left:
            room = len(data) if len(data) <= self._head_left else _whole_characters(data[: self._head_left])
            self._add_live(stream, data[:room], now)
            self._head_left = self._head_left - room if room == len(data) else 0
            data = data[room:]
        if data:
            self._tail_streams.add(stream)
            self._tail_seen += len(data)
            self._tail += data
            if len(self._tail) > 2 * self._tail_limit:  # not each time: deleting at the front moves the rest
                del self._tail[: len(self._tail) - self._tail_limit]

    def _add_live(self, stream: str, data: bytes, now: float) -> None:
        if not data:
            return
        if not self._pending:
            self.flush_at = now + self._interval_s
        same = [segment for name, segment in self._pending if name == stream]
        if self._pending and (self._pending[-1][0] == stream or (same and len(self._pending) >= MAX_SEGMENTS)):
            same[-1].extend(data)
        else:
            self._pending.append((stream, bytearray(data)))
        self._pending_bytes += len(data)
        if self._pending_bytes >= FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        pending, self._pending, self._pending_bytes, self.flush_at = self._pending, [], 0, math.inf
        if pending:
            self._interval_s = min(FLUSH_MAX_S, self._interval_s * FLUSH_GROWTH)
        for stream, data in pending:
            self._head += data
            if self._on_output is not None:
                self._on_output(stream, bytes(data))


def _whole_characters(data: bytes) -> int:
    """How many bytes of `data` do not end inside a UTF-8 character."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:  # a first byte: how many does its character have?
            needs = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF8 else 1
            return len(data) - back if needs > back else len(data)
        if byte < 0x80:
            break
    return len(data)
