"""Which of the interpreters present a Python project gets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from shared.stacks.base import FileTree, Runtime, RuntimeChoice
from shared.stacks.python_constraints import alternatives
from shared.stacks.python_manifests import read_toml, table


@dataclass(frozen=True)
class _Pin:
    """A version somebody wrote down: `3`, `3.11` or `3.11.7`, and where."""

    parts: tuple[int, ...]
    source: str

    @property
    def text(self) -> str:
        return ".".join(map(str, self.parts))

    def fits(self, version: Version) -> bool:
        return version.release[: len(self.parts)] == self.parts


@dataclass(frozen=True)
class _Range:
    """Versions a manifest allows: one of `sets` has to hold."""

    sets: tuple[SpecifierSet, ...]
    text: str
    source: str

    def allows(self, version: Version) -> bool:
        return any(specifiers.contains(version, prereleases=True) for specifiers in self.sets)


def choose(files: FileTree, present: Sequence[Runtime]) -> RuntimeChoice:
    """The interpreter for a project; the first of `present` when it asks for none.

    A pin that cannot be had gives the nearest version and a warning; a range nothing satisfies gives no runtime.
    """
    warnings: list[str] = []
    ranges = _ranges(files, warnings)
    pins = _pins(files, warnings)
    wanted = "; ".join(
        [f"Python {pin.text} ({pin.source})" for pin in pins[:1]]
        + [f"Python {item.text} ({item.source})" for item in ranges]
    )
    pythons = [(runtime, Version(runtime.version)) for runtime in present if runtime.name == "python"]
    allowed = [(runtime, version) for runtime, version in pythons if all(item.allows(version) for item in ranges)]
    if not allowed:
        return RuntimeChoice(None, wanted or "Python", tuple(warnings))
    if pins:
        warnings += _contradictions(pins, ranges)
        runtime = _nearest(pins[0], allowed)
        if not pins[0].fits(Version(runtime.version)):
            warnings.append(
                f"{pins[0].source} asks for Python {pins[0].text}; using {runtime.version}, the nearest fit"
            )
        return RuntimeChoice(runtime, wanted, tuple(warnings))
    if ranges and allowed[0][0] is not pythons[0][0]:
        # Not the default: the newest that is no pre-release. `max` keeps the first of equals.
        runtime = max(allowed, key=lambda pair: (not pair[1].is_prerelease, pair[1]))[0]
        return RuntimeChoice(runtime, wanted, tuple(warnings))
    return RuntimeChoice(allowed[0][0], wanted, tuple(warnings))


def _nearest(pin: _Pin, allowed: Sequence[tuple[Runtime, Version]]) -> Runtime:
    """The pinned version; else another patch of it; else the next newer minor version, else the next older."""
    for length in range(len(pin.parts), 1, -1):
        same = [(runtime, version) for runtime, version in allowed if version.release[:length] == pin.parts[:length]]
        if same:
            return same[0][0] if length == len(pin.parts) else max(same, key=lambda pair: pair[1])[0]
    if len(pin.parts) == 1:
        fitting = [runtime for runtime, version in allowed if pin.fits(version)]
        return fitting[0] if fitting else allowed[0][0]
    newer = [pair for pair in allowed if pair[1].release[:2] > pin.parts[:2]]
    if newer:
        return min(newer, key=lambda pair: pair[1].release[:2])[0]
    return max(allowed, key=lambda pair: pair[1].release[:2])[0]


def _contradictions(pins: Sequence[_Pin], ranges: Sequence[_Range]) -> list[str]:
    first = pins[0]
    found = []
    for other in pins[1:]:
        length = min(len(first.parts), len(other.parts))
        if first.parts[:length] != other.parts[:length]:
            found.append(
                f"{first.source} says Python {first.text} and wins over {other.source}, which says {other.text}"
            )
    for item in ranges:
        if not item.allows(_as_version(first, item)):
            found.append(f"{first.source} says Python {first.text}, which {item.text} in {item.source} rules out")
    return found


def _as_version(pin: _Pin, item: _Range) -> Version:
    """A version to hold against a range: of a pin without a patch number, one the range might allow."""
    if len(pin.parts) >= 3:
        return Version(pin.text)
    patches = (Version(f"{pin.text}{'.9' * (2 - len(pin.parts))}.{patch}") for patch in (99, 0))
    return next((version for version in patches if item.allows(version)), Version(pin.text))


def _pins(files: FileTree, warnings: list[str]) -> list[_Pin]:
    found = []
    lines = [line.split("#")[0].strip() for line in files.text(".python-version").splitlines()]
    found.append((".python-version", next((line for line in lines if line), "")))
    tools = re.search(r"(?m)^[ \t]*python[ \t]+(\S+)", files.text(".tool-versions"))
    found.append((".tool-versions", tools[1] if tools else ""))
    found.append(("runtime.txt", files.text("runtime.txt").strip()))
    pipfile, fault = read_toml(files, "Pipfile")
    if fault:
        warnings.append(fault)
    requires = table(pipfile, "requires")
    found.append(("Pipfile", str(requires.get("python_full_version") or requires.get("python_version") or "")))
    pins = []
    for source, text in found:
        match = re.fullmatch(r"(?:c?python-?)?(\d+(?:\.\d+){0,2})(?:\.[x*])?", text)
        if match:
            pins.append(_Pin(tuple(int(part) for part in match[1].split(".")), source))
        elif text not in ("", "*", "system"):
            warnings.append(f"{source} asks for Python {text!r}, which is not a version of CPython; ignored")
    return pins


def _ranges(files: FileTree, warnings: list[str]) -> list[_Range]:
    pyproject, fault = read_toml(files, "pyproject.toml")
    if fault:
        warnings.append(fault)
    found = []
    requires = table(pyproject, "project").get("requires-python")
    if requires is not None:
        try:
            found.append(_Range((SpecifierSet(str(requires)),), str(requires), "requires-python"))
        except InvalidSpecifier:
            warnings.append(f"requires-python {requires!r} is not a version range; ignored")
    poetry = table(pyproject, "tool", "poetry", "dependencies").get("python")
    if isinstance(poetry, str):
        try:
            found.append(_Range(tuple(alternatives(poetry)), poetry, "tool.poetry.dependencies.python"))
        except ValueError:
            warnings.append(f"tool.poetry.dependencies.python {poetry!r} is not a version range; ignored")
    setup = re.search(r"(?m)^python_requires[ \t]*=[ \t]*(\S.*)$", files.text("setup.cfg"))
    if setup and requires is None:
        try:
            found.append(_Range((SpecifierSet(setup[1].strip()),), setup[1].strip(), "python_requires in setup.cfg"))
        except InvalidSpecifier:
            warnings.append(f"python_requires {setup[1]!r} in setup.cfg is not a version range; ignored")
    return found


def minor(runtime: Runtime) -> tuple[int, int]:
    """Major and minor version of a runtime; (0, 0) when it is not a version."""
    try:
        release = Version(runtime.version).release
    except InvalidVersion:
        return (0, 0)
    return (release[0], release[1] if len(release) > 1 else 0)
