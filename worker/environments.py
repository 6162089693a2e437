"""Keyed, immutable dependency environments, built once and mounted into every build that wants the same.

An entry is staged privately, completed by our own record written last, and renamed into place: tools' own markers lie
after an interruption (STACKS.md, caches). Whoever comes first builds under a lock of that key; the others wait and find
it there. An entry without a readable record is discarded.

Below the store's root: `entries/KEY/{tree,record.json}`, `locks/KEY`, `staging/`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from shared.errors import EnvironmentStoreError
from worker.workspace import remove_tree

LOCK_POLL_S = 0.05
RECORD_VERSION = 1
Failure = TypeVar("Failure")


@dataclass(frozen=True)
class Environment:
    """A finished entry. `tree` is the read-only lower layer; `pins` the exact versions in it, one a line."""

    key: str
    tree: Path
    pins: str
    outcome: str
    reason: str


@dataclass(frozen=True)
class Failed(Generic[Failure]):
    """The entry could not be built, and why."""

    failure: Failure


class WaitAbandoned(Exception):
    """The wait for another build's environment was given up because `give_up` said so."""


class EnvironmentStore:
    """The environments on this machine, shared by all its workers. Its own faults are `EnvironmentStoreError`s."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            for name in ("entries", "locks", "staging"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentStoreError(f"cannot make the environment store {root}: {error.strerror}") from None

    def find(self, key: str) -> Environment | None:
        """A finished environment, or None. Touches it, so that its age says when it was last of use."""
        entry = self.root / "entries" / key
        record = _read_record(entry / "record.json")
        if record is None:
            return None
        with contextlib.suppress(OSError):
            os.utime(entry / "record.json")
        built = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record["built_at"]))
        return Environment(
            key, entry / "tree", str(record["pins"]), "hit", f"same inputs as the environment built {built} UTC"
        )

    def obtain(
        self,
        key: str,
        construct: Callable[[Path], str | Failed[Failure]],
        *,
        give_up: Callable[[], bool],
        why: str = "",
    ) -> Environment | Failed[Failure]:
        """The environment of a key: found, or built by `construct`.

        `construct` gets a private folder, fills its `tree` and returns the pins, or a `Failed` that is passed on and
        leaves nothing behind. While another build holds the key's lock this waits, until `give_up` says to stop
        (`WaitAbandoned`).
        """
        found = self.find(key)
        if found:
            return found
        with self._lock(key, give_up) as waited:
            found = self.find(key)
            if found:
                reason = "built by another build meanwhile" if waited else found.reason
                return Environment(found.key, found.tree, found.pins, "hit", reason)
            return self._build(key, construct, why or "first build with these inputs on this machine")

    def _build(
        self, key: str, construct: Callable[[Path], str | Failed[Failure]], why: str
    ) -> Environment | Failed[Failure]:
        entry = self.root / "entries" / key
        staging = self.root / "staging" / f"{key}-{secrets.token_hex(4)}"
        try:
            if entry.exists():  # no readable record: half-built or damaged
                remove_tree(entry)
            (staging / "tree").mkdir(parents=True)
            pins = construct(staging)
            if isinstance(pins, Failed):
                return pins
            _sync(staging)
            record = {"version": RECORD_VERSION, "key": key, "built_at": time.time(), "pins": pins}
            _write_durably(staging / "record.json", json.dumps(record).encode())
            staging.rename(entry)
        except OSError as error:
            raise EnvironmentStoreError(
                f"cannot write the environment {key} in {self.root}: {error.strerror}",
                hint="check its space and permissions",
            ) from None
        finally:
            remove_tree(staging)
        return Environment(key, entry / "tree", pins, "miss", why)

    @contextlib.contextmanager
    def _lock(self, key: str, give_up: Callable[[], bool]) -> Iterator[bool]:
        """Hold a key's lock; yields whether somebody else had it first. The kernel frees it when we die."""
        waited = False
        with (self.root / "locks" / key).open("ab") as stream:
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    waited = True
                    if give_up():
                        raise WaitAbandoned from None
                    time.sleep(LOCK_POLL_S)
            yield waited


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("version") != RECORD_VERSION or "pins" not in record:
        return None
    return record if (path.parent / "tree").is_dir() and isinstance(record.get("built_at"), float) else None


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    """Have the folder's file system on disk before the record says that it is complete."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        ctypes.CDLL(None).syncfs(descriptor)
    except AttributeError:  # no syncfs on this platform
        os.sync()
    finally:
        os.close(descriptor)
