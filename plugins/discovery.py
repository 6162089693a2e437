"""Where plugins are found, and how one is loaded without a trace on `sys.path`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

OWN_FOLDER = Path(__file__).resolve().parent
ENTRY_POINT_GROUP = "orchestrator_toolkit.plugins"

# They share the folder with the plugins; a second copy of them would bring a second PluginVeto nobody catches.
_MACHINERY = frozenset(str(OWN_FOLDER / name) for name in ("configured.py", "discovery.py", "manager.py"))

_log = logging.getLogger("orchestrator.plugins")


@dataclass(frozen=True)
class Definition:
    """A plugin's code, loaded: the object that carries its PLUGIN_* names, and what registers it (None: no plugin)."""

    described_by: object
    register: Callable[[object], object] | None
    module: str


@dataclass(frozen=True)
class Candidate:
    """Something that may be a plugin, not loaded yet.

    `identity` is equal for two candidates that are the same code. `requested` says that somebody named it, so that
    it is an error and not a stray file when it turns out to be no plugin. `load` raises whatever the plugin raises.
    """

    name: str
    source: str
    identity: tuple[str, str]
    requested: bool
    load: Callable[[], Definition]


def find(plugin_dir: Path | None, enabled: Sequence[str]) -> Iterator[Candidate]:
    """Every candidate, in a stable order, each possibly more than once.

    The order: the files of `plugin_dir` (None: this package's own folder) by name, `enabled` as listed, then installed
    packages by entry point name. Never raises: what cannot be looked at is a candidate whose `load` raises.
    """
    folder = OWN_FOLDER if plugin_dir is None else Path(plugin_dir).absolute()
    yield from _in_folder(folder)
    for name in enabled:
        yield _named(name, (folder, OWN_FOLDER))
    yield from _installed()


def _in_folder(folder: Path) -> Iterator[Candidate]:
    try:
        files = sorted((path for path in folder.iterdir() if _is_plugin_file(path)), key=lambda path: path.name)
    except FileNotFoundError:
        _log.warning("plugin folder %s does not exist; no plugins are loaded from it", folder)
        return
    except OSError as error:
        yield Candidate(folder.name, str(folder), (str(folder), ""), True, partial(_fail, error))
        return
    for path in files:
        yield _file(path, requested=False)


def _is_plugin_file(path: Path) -> bool:
    # Not is_file(): a dangling link is a plugin somebody expects to run, and has to show up as a failure.
    return (
        path.suffix == ".py"
        and not path.name.startswith(("_", "."))
        and _real(path) not in _MACHINERY
        and not path.is_dir()
    )


def _file(path: Path, *, requested: bool) -> Candidate:
    return Candidate(path.stem, str(path), (_real(path), "register"), requested, partial(_load_file, path))


def _named(name: str, folders: Sequence[Path]) -> Candidate:
    # A plugin folder goes first: an installed or current-directory module of the same name must not take its place.
    if re.fullmatch(r"[\w-]+", name):
        for folder in folders:
            path = folder / f"{name}.py"
            try:
                if path.is_file() and _real(path) not in _MACHINERY:
                    return _file(path, requested=True)
            except OSError:
                continue  # a folder we may not look into has been reported as such
    origin = _origin(name)
    return Candidate(name, origin or name, (origin or name, "register"), True, partial(_load_module, name))


def _installed() -> Iterator[Candidate]:
    from importlib.metadata import entry_points  # slow to import, and only discovery needs it

    try:
        found = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (point.name, point.value))
    except Exception as error:  # noqa: BLE001  a package's damaged metadata must not stop the others
        yield Candidate(
            "entry points", f"entry points {ENTRY_POINT_GROUP}", ("entry points", ""), True, partial(_fail, error)
        )
        return
    for point in found:
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        module = point.value.partition(":")[0].strip()
        attribute = point.value.partition(":")[2].partition("[")[0].strip()
        yield Candidate(
            point.name,
            f"{package} (entry point {point.name})",
            (_origin(module) or module, attribute or "register"),
            True,
            partial(_load_entry_point, point, module),
        )


def _origin(module: str) -> str | None:
    """The real path of the file that importing `module` would run; None if that cannot be told."""
    try:
        spec = importlib.util.find_spec(module)
    except (Exception, SystemExit):  # noqa: BLE001  a parent package may raise anything; importing it will say what
        return None
    return _real(Path(spec.origin)) if spec and spec.has_location and spec.origin else None


def _real(path: Path) -> str:
    return os.path.realpath(path)  # unlike Path.resolve, it does not raise for a loop of links


def _load_file(path: Path) -> Definition:
    # Named by its path, so that two folders may hold files of one name and neither hides an importable module.
    digest = hashlib.sha256(os.fsencode(_real(path))).hexdigest()[:12]
    name = f"orchestrator_plugin_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded as a Python module", path=str(path))
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here while it is being defined
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before
        raise
    return _defined_by(module)


def _load_module(name: str) -> Definition:
    # By its own name: that is unique already, and its relative imports depend on it.
    return _defined_by(importlib.import_module(name))


def _load_entry_point(point: EntryPoint, module: str) -> Definition:
    loaded: object = point.load()
    if not callable(getattr(loaded, "register", None)) and callable(loaded):
        return Definition(importlib.import_module(module), loaded, module)  # `package.module:register`
    return _defined_by(loaded)


def _defined_by(loaded: object) -> Definition:
    register = getattr(loaded, "register", None)
    module = loaded.__name__ if isinstance(loaded, ModuleType) else type(loaded).__module__
    return Definition(loaded, register if callable(register) else None, module)


def _fail(error: Exception) -> Definition:
    raise error
