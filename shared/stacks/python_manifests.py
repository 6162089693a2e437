"""What a Python project's manifests say: its manager, what it asks for, what of it is in the project's own folder.

Reading is tolerant: a manifest with a fault in it becomes a warning here, and the manager that reads it at install
time fails with its own message, which is the build's verdict.
"""

from __future__ import annotations

import json
import posixpath
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.stacks.base import FileTree, merge
from shared.stacks.python_requirements import canonical, is_local, names_of, option, requirement_lines

LOCKS = {"uv.lock": "uv", "poetry.lock": "poetry", "pdm.lock": "pdm", "Pipfile.lock": "pipenv"}
_INDEX_OPTIONS = ("--index-url", "-i", "--extra-index-url", "--find-links", "-f", "--trusted-host")
_FLAGS = ("--pre", "--no-index", "--prefer-binary")


@dataclass(frozen=True)
class Manifests:
    """A project's manifests, read.

    `manager`: uv, poetry, pdm, pipenv, requirements, pyproject, setup or none. `names`: canonical names of what it asks
    for, extras in brackets. `inputs`: the manifests the manager reads. `local`: a dependency lives in the project's own
    folder. `package`: the project itself is installable and is to be installed. `asks_for_itself`: a manifest lists the
    project as a dependency, in place. `missing`: asked for, yet not locked.
    """

    manager: str
    reason: str
    pyproject: Mapping[str, Any]
    names: frozenset[str]
    inputs: tuple[str, ...]
    local: bool
    package: bool
    asks_for_itself: bool
    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    pipfile_scripts: frozenset[str]


def table(value: object, *keys: str) -> Mapping[str, Any]:
    """The table at a path of keys; empty when it is not there or is something else."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def read_toml(files: FileTree, path: str) -> tuple[Mapping[str, Any], str]:
    """A TOML file's content and the fault in it; empty and no fault when it is not there."""
    if path not in files:
        return {}, ""
    try:
        return tomllib.loads(files.text(path)), ""
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        return {}, f"{path} is not valid TOML: {error}"


def read(files: FileTree) -> Manifests:
    """What the manifests of a project say."""
    pyproject, fault = read_toml(files, "pyproject.toml")
    warnings = [fault] if fault else []
    manager, manifest, chosen_warnings = _choose(files, pyproject)
    warnings += chosen_warnings
    inputs, includes_local, names = _requirements(files)
    locked, lock_local = _locked(files, manifest)
    direct = _direct(files, pyproject, manager)
    missing: tuple[str, ...] = ()
    if manager == "requirements":
        local = includes_local
    else:
        inputs = ()
        names = names_of(direct) | locked
        local = lock_local or _declares_local(pyproject, manager, direct)
        if manifest in LOCKS and locked and manager != "poetry":  # poetry checks its lock itself
            plain = {name.partition("[")[0] for name in locked}
            missing = tuple(sorted({name.partition("[")[0] for name in names_of(direct)} - plain))
    if missing:
        warnings.append(f"{manifest} is out of step: {', '.join(missing)} is not in it; lock again")
    asks_for_itself = manager in ("requirements", "pipenv") and "." in _in_place(files, manager)
    package = _is_package(files, pyproject, manager, names)
    if manager == "requirements":
        warnings += _undeclared(pyproject, names)
    return Manifests(
        manager=manager,
        reason=_reason(manager, manifest),
        pyproject=pyproject,
        names=names,
        inputs=_inputs(files, pyproject, manager, inputs),
        local=local,
        package=package and not asks_for_itself,
        asks_for_itself=asks_for_itself,
        missing=missing,
        warnings=tuple(warnings),
        pipfile_scripts=frozenset(table(read_toml(files, "Pipfile")[0], "scripts")),
    )


def _choose(files: FileTree, pyproject: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """The manager, the manifest it goes by, and warnings about those passed over."""
    warnings = []
    locks = []
    for lock, manager in LOCKS.items():
        if lock not in files:
            continue
        needed = "Pipfile" if manager == "pipenv" else "pyproject.toml"
        if needed in files:
            locks.append(lock)
        else:
            warnings.append(f"{lock} is ignored: it is of no use without {needed}")
    if locks:
        lock = next((lock for lock in locks if LOCKS[lock] == _written_for(pyproject)), locks[0])
        others = [path for path in (*locks, "requirements.txt") if path != lock and path in files]
        if others:
            warnings.append(f"{lock} decides the dependencies; {', '.join(others)} ignored")
        return LOCKS[lock], lock, warnings
    if "requirements.txt" in files:
        if "Pipfile" in files:
            warnings.append("requirements.txt decides the dependencies; Pipfile, which has no lock, ignored")
        return "requirements", "requirements.txt", warnings
    if "Pipfile" in files:
        return "pipenv", "Pipfile", warnings
    if "pyproject.toml" in files and (declares_project(pyproject) or not pyproject):
        return "pyproject", "pyproject.toml", warnings
    if is_setup(files):
        return "setup", "setup.py" if "setup.py" in files else "setup.cfg", warnings
    return "none", "", warnings


def _written_for(pyproject: Mapping[str, Any]) -> str:
    """The manager a pyproject.toml has settings of, when it is only one."""
    managers = [name for name in ("uv", "poetry", "pdm") if name in table(pyproject, "tool")]
    return managers[0] if len(managers) == 1 else ""


def declares_project(pyproject: Mapping[str, Any]) -> bool:
    """Whether a pyproject.toml describes a project rather than only configuring linters and the like."""
    return any(key in pyproject for key in ("project", "build-system", "dependency-groups")) or bool(
        table(pyproject, "tool", "poetry")
    )


def is_setup(files: FileTree) -> bool:
    """Whether there is a setup.py, or a setup.cfg that describes a project."""
    return "setup.py" in files or bool(re.search(r"(?m)^\[(metadata|options)\]", files.text("setup.cfg")))


def _reason(manager: str, manifest: str) -> str:
    if manager == "none":
        return "no Python manifest: a bare virtual environment"
    return f"{manifest}: {manager}" if manifest in LOCKS else manifest


def _inputs(
    files: FileTree, pyproject: Mapping[str, Any], manager: str, requirements: Iterable[str]
) -> tuple[str, ...]:
    own: dict[str, tuple[str, ...]] = {
        "uv": ("pyproject.toml", "uv.lock"),
        "poetry": ("pyproject.toml", "poetry.lock"),
        "pdm": ("pyproject.toml", "pdm.lock"),
        "pipenv": ("Pipfile", "Pipfile.lock"),
        "pyproject": ("pyproject.toml",),
        "setup": ("setup.py", "setup.cfg"),
    }
    # uv takes its settings (indexes, overrides) from these, whatever it is asked to install.
    settings = ("uv.toml", *(("pyproject.toml",) if table(pyproject, "tool", "uv") else ()))
    return tuple(path for path in merge(own.get(manager, ()), requirements, settings) if path in files)


def _requirements(files: FileTree) -> tuple[tuple[str, ...], bool, frozenset[str]]:
    """Every file requirements.txt draws in, whether any asks for a local path, and the names asked for."""
    seen: dict[str, None] = {}
    waiting = ["requirements.txt"]
    local = False
    wanted = []
    while waiting:
        path = waiting.pop(0)
        if path in seen or path not in files:
            continue
        seen[path] = None
        for line in requirement_lines(files.text(path)):
            included = option(line, "-r", "--requirement", "-c", "--constraint")
            editable = option(line, "-e", "--editable")
            if included is not None:
                waiting.append(posixpath.normpath(posixpath.join(posixpath.dirname(path), included)))
            elif editable is not None:
                local = local or is_local(editable)
            elif (links := option(line, "--find-links", "-f")) is not None:
                local = local or "://" not in links
            elif not line.startswith("-"):
                local = local or is_local(line)
                wanted.append(line)
    return tuple(seen), local, names_of(wanted)


def _in_place(files: FileTree, manager: str) -> list[str]:
    """Paths that the manifests install in place, `.` for the project itself."""
    found: list[object] = []
    if manager == "requirements":
        for path in _requirements(files)[0]:
            lines = (option(line, "-e", "--editable") for line in requirement_lines(files.text(path)))
            found += [re.sub(r"\[.*\]$", "", line) for line in lines if line and is_local(line)]
    elif manager == "uv":
        found += [table(package, "source").get("editable") for package in _packages(read_toml(files, "uv.lock")[0])]
    else:
        entries: Mapping[str, Any] = {}
        if manager == "poetry":
            entries = table(read_toml(files, "pyproject.toml")[0], "tool", "poetry", "dependencies")
        elif manager == "pipenv":
            entries = table(read_toml(files, "Pipfile")[0], "packages")
        found += [item["path"] for item in map(table, entries.values()) if "path" in item and _is_in_place(item)]
    return [posixpath.normpath(path) for path in found if isinstance(path, str) and path]


def _is_in_place(entry: Mapping[str, Any]) -> bool:
    return entry.get("develop") is True or entry.get("editable") is True


def editables(files: FileTree, manager: str) -> list[str]:
    """Folders of the project that its manifests install in place, apart from the project itself."""
    return [path for path in merge(_in_place(files, manager)) if path != "."]


def index_options(files: FileTree, manifests: Manifests) -> list[str]:
    """Where else than the default index the project's packages come from, as arguments of pip."""
    options = []
    for path in manifests.inputs if manifests.manager == "requirements" else ():
        for line in requirement_lines(files.text(path)):
            name = next((name for name in _INDEX_OPTIONS if option(line, name) is not None), "")
            if name:
                options += [name, option(line, name) or ""]
            elif line in _FLAGS:
                options.append(line)
    sources: list[object] = []
    for keys in (("tool", "uv", "index"), ("tool", "poetry", "source"), ("tool", "pdm", "source")):
        found = table(manifests.pyproject, *keys[:-1]).get(keys[-1])
        sources += found if isinstance(found, list) else []
    if manifests.manager == "pipenv":
        found = read_toml(files, "Pipfile")[0].get("source")
        sources += found if isinstance(found, list) else []
    for source in sources:
        url = source.get("url") if isinstance(source, Mapping) else None
        if isinstance(url, str) and "$" not in url:
            options += ["--extra-index-url", url]
    return options


def project_dependencies(pyproject: Mapping[str, Any]) -> list[str]:
    """`[project] dependencies`, without what is not text."""
    found = table(pyproject, "project").get("dependencies")
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def _direct(files: FileTree, pyproject: Mapping[str, Any], manager: str) -> list[str]:
    """What the project itself asks for, as far as names go."""
    if manager == "pipenv":
        return _tables_as_requirements(table(read_toml(files, "Pipfile")[0], "packages"))
    return project_dependencies(pyproject) + _tables_as_requirements(table(pyproject, "tool", "poetry", "dependencies"))


def _tables_as_requirements(dependencies: Mapping[str, Any]) -> list[str]:
    texts = []
    for name, value in dependencies.items():
        if name.lower() == "python" or (isinstance(value, Mapping) and (value.get("optional") or value.get("path"))):
            continue
        extras = value.get("extras") if isinstance(value, Mapping) else None
        texts.append(f"{name}[{','.join(map(str, extras))}]" if isinstance(extras, list) else name)
    return texts


def _packages(lock: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = lock.get("package")
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []


def _locked(files: FileTree, lock: str) -> tuple[frozenset[str], bool]:
    """Names in a lock, and whether it holds packages of the project's own folder besides the project itself."""
    if lock == "Pipfile.lock":
        try:
            entries = table(json.loads(files.text(lock)), "default")
        except (ValueError, RecursionError):
            return frozenset(), False
        return names_of(entries), any("path" in table(entry) or "file" in table(entry) for entry in entries.values())
    if lock not in LOCKS:
        return frozenset(), False
    packages = _packages(read_toml(files, lock)[0])
    return names_of(str(package.get("name", "")) for package in packages), any(map(_is_local_package, packages))


def _is_local_package(package: Mapping[str, Any]) -> bool:
    source = table(package, "source")
    if source.get("type") in ("directory", "file") or "path" in package:
        return True
    return any(source.get(kind, ".") != "." for kind in ("editable", "directory", "virtual", "path"))


def _declares_local(pyproject: Mapping[str, Any], manager: str, direct: Iterable[str]) -> bool:
    dynamic = table(pyproject, "project").get("dynamic")
    if manager == "setup" or (manager == "pyproject" and isinstance(dynamic, list) and "dependencies" in dynamic):
        return True  # only the build backend knows what they are, and it may read any file
    if any(is_local(item) for item in direct):
        return True
    entries = [
        *table(pyproject, "tool", "uv", "sources").values(),
        *table(pyproject, "tool", "poetry", "dependencies").values(),
    ]
    tables = [item for entry in entries for item in (entry if isinstance(entry, list) else [entry])]
    return any("path" in table(item) or "workspace" in table(item) for item in tables)


def _is_package(files: FileTree, pyproject: Mapping[str, Any], manager: str, names: frozenset[str]) -> bool:
    builds = "build-system" in pyproject
    tool = table(pyproject, "tool")
    if manager == "uv":
        return bool(table(tool, "uv").get("package", builds))
    if manager == "poetry":
        return builds and table(tool, "poetry").get("package-mode") is not False
    if manager == "pdm":
        return builds and table(tool, "pdm").get("distribution") is not False
    if manager == "pyproject":
        return builds and table(tool, "uv").get("package") is not False
    if manager == "requirements":
        # Without scripts or a src layout it runs from its folder; building it could only fail.
        own = canonical(str(table(pyproject, "project").get("name", "")))
        laid_out = bool(table(pyproject, "project", "scripts")) or any(path.startswith("src/") for path in files)
        return builds and laid_out and own not in names
    return manager == "setup"


def _undeclared(pyproject: Mapping[str, Any], names: frozenset[str]) -> list[str]:
    declared = {name for name in names_of(project_dependencies(pyproject)) if "[" not in name}
    missing = sorted(declared - names)
    if not missing:
        return []
    return [f"requirements.txt decides the dependencies; {', '.join(missing)} of pyproject.toml is not in it"]
