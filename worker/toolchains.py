"""The Python interpreters on this machine, as the real programs they are.

A name on PATH may be a shim that fails for versions that are not active (pyenv's exits 127), or a link into a virtual
environment: every candidate is followed to the file it is and asked what it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from packaging.version import InvalidVersion, Version

from shared.errors import OrchestratorError
from shared.stacks.base import Runtime

OLDEST = (3, 8)

# ELF; Mach-O of 64 bits, little-endian; universal Mach-O.
_MAGIC = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")

_QUESTION = (
    "import platform, sys; print(sys.implementation.name, platform.python_version(), sys.base_prefix, sep='\\n')"
)

Probe = Callable[[list[str]], str]


def discover(
    probe: Probe,
    *,
    environ: Mapping[str, str] | None = None,
    own: Path | None = None,
    system: tuple[Path, ...] = (Path("/usr/bin"), Path("/usr/local/bin")),
) -> list[Runtime]:
    """CPython 3.8 or newer, each real interpreter once; the worker's own base interpreter first.

    `probe` runs a command and returns its standard output; an answer that makes no sense, or an error of the operating
    system or of ours, means that the interpreter is of no use. `environ` (default: this process's) says where else to
    look: PATH, PYENV_ROOT, UV_PYTHON_INSTALL_DIR, XDG_DATA_HOME, HOME.
    """
    environ = os.environ if environ is None else environ
    found: dict[Path, Runtime | None] = {}
    for candidate in _candidates(environ, own or _own(), system):
        path = _real(candidate)
        if path is not None and path not in found:
            found[path] = _ask(path, probe)
    return [runtime for runtime in found.values() if runtime]


def _own() -> Path:
    """The interpreter below the worker's virtual environment."""
    return Path(getattr(sys, "_base_executable", "") or sys.executable)


def _candidates(environ: Mapping[str, str], own: Path, system: tuple[Path, ...]) -> Iterator[Path]:
    yield own
    for folder in (
        *system,
        *(Path(part) for part in environ.get("PATH", "").split(os.pathsep) if part.startswith("/")),
    ):
        yield from _named(folder)
    home = Path(environ["HOME"]) if environ.get("HOME") else None
    stores = [Path(environ["PYENV_ROOT"]) / "versions"] if environ.get("PYENV_ROOT") else []
    if environ.get("UV_PYTHON_INSTALL_DIR"):
        stores.append(Path(environ["UV_PYTHON_INSTALL_DIR"]))
    if home:
        data = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
        stores += [home / ".pyenv" / "versions", data / "uv" / "python"]
    for store in stores:
        for folder in sorted(_entries(store, "*"), key=_newest_first):
            yield from _named(folder / "bin")


def _named(folder: Path) -> list[Path]:
    """The interpreters in a folder whose names say a version, newest first."""
    found = [path for path in _entries(folder, "python3.*") if path.name.removeprefix("python3.").isdigit()]
    return sorted(found, key=lambda path: -int(path.name.removeprefix("python3.")))


def _entries(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _newest_first(folder: Path) -> tuple[int, ...]:
    digits = "".join(character if character.isdigit() else " " for character in folder.name).split()
    return tuple(-int(part) for part in digits[:3])


def _real(path: Path) -> Path | None:
    """The executable a path leads to; None for what is missing, cannot be run, or is a script."""
    try:
        real = path.resolve(strict=True)
        with real.open("rb") as stream:
            magic = stream.read(4)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return None
    return real if magic in _MAGIC and os.access(real, os.X_OK) else None


def _ask(path: Path, probe: Probe) -> Runtime | None:
    try:
        lines = probe([str(path), "-I", "-S", "-c", _QUESTION]).splitlines()
    except (OSError, OrchestratorError):
        return None
    if len(lines) != 3 or lines[0] != "cpython" or not lines[2].startswith("/"):
        return None
    try:
        version = Version(lines[1])
    except InvalidVersion:
        return None
    return Runtime("python", lines[1], str(path), lines[2]) if version.release[:2] >= OLDEST else None
