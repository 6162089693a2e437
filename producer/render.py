"""What people see: progress on standard error, the verdict on standard output."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from shared.records import BuildRecord, Event
from shared.result import BuildResult

# Everything a build prints is untrusted: on a terminal only text, tabs and line ends pass.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
TAIL_LINES = 20


def printable(text: str) -> str:
    """Text without terminal control sequences."""
    return _CONTROL.sub("", text.replace("\r\n", "\n"))


class Progress:
    """Follows a build's events as plain lines."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._at_line_start = True

    def show(self, event: Event) -> None:
        data = event.data
        if event.type == "stage" and data.get("status") != "started":
            note = " (cached)" if data.get("cached") else ""
            detail = f": {data['detail']}" if data.get("detail") else ""
            self._line(f"[{data['name']}] {data['status']} in {data.get('seconds', 0):.2f} s{note}{detail}")
        elif event.type == "command":
            self._line(f"[{data['stage']}] $ {data['command']}")
        elif event.type == "note":
            self._line(f"warning: {data['text']}")
        elif event.type == "state" and data.get("status") == "running":
            self._line(f"running on {data.get('worker', '?')}")
        elif event.type == "output":
            text = printable(data["text"])
            self._stream.write(text)
            self._at_line_start = text.endswith("\n") if text else self._at_line_start
        self._stream.flush()

    def _line(self, text: str) -> None:
        if not self._at_line_start:
            self._stream.write("\n")
            self._at_line_start = True
        self._stream.write(printable(text) + "\n")


def log_text(events: list[Event]) -> str:
    """The output of a build, stages' commands included, as text."""
    parts = []
    for event in events:
        if event.type == "output":
            parts.append(event.data["text"])
        elif event.type == "command":
            parts.append(f"[{event.data['stage']}] $ {event.data['command']}\n")
    return "".join(parts)


def verdict(result: BuildResult) -> str:
    """A result for a person: one line, then what to do."""
    cause = f" ({result.cause})" if result.cause else ""
    lines = [f"{result.status}{cause}: {result.message}"]
    if result.failure_output and result.cause:
        tail = printable(result.failure_output.text).splitlines()[-TAIL_LINES:]
        lines += [f"  | {line}" for line in tail]
    lines += [f"note: {note}" for note in result.plugin_notes]
    if result.cause and result.advice != "none":
        lines.append(f"next: {str(result.advice).replace('_', ' ')}")
    return "\n".join(lines)


def builds_table(records: list[BuildRecord]) -> str:
    rows = [
        ("BUILD", "STATUS", "TITLE", "WORKER"),
        *((r.build_id, str(r.status), printable(r.title), r.worker) for r in records),
    ]
    return table(rows)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns padded to their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def facts(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in values.items() if value not in (None, "", [], {}))
