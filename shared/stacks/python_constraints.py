"""Poetry's version constraints and dependency tables in the terms of PEP 440 and PEP 508.

Poetry writes `^1.2`, `~1.2` and `1.*` where the standards have comparisons; what each means is
https://python-poetry.org/docs/dependency-specification/. Needed for its `python = "^3.11"`, and for a Poetry project
that brings no lock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from packaging.specifiers import InvalidSpecifier, SpecifierSet

_TERM = re.compile(r"(\^|~(?!=)|===|==|~=|!=|>=|<=|>|<|=)?\s*v?([0-9A-Za-z.*+!_-]+)")


def alternatives(constraint: str) -> list[SpecifierSet]:
    """The specifier sets one of which a version has to satisfy. Raises `ValueError` for what is no constraint."""
    sets = []
    for part in re.split(r"\|\|?", constraint):
        try:
            sets.append(SpecifierSet(",".join(_terms(part))))
        except InvalidSpecifier as error:
            raise ValueError(f"{constraint!r} is not a version constraint") from error
    return sets


def _terms(part: str) -> list[str]:
    text = part.strip()
    if not text:
        raise ValueError("a version constraint is empty")
    terms = []
    position = 0
    while position < len(text):
        match = _TERM.match(text, position)
        if not match:
            raise ValueError(f"{part.strip()!r} is not a version constraint")
        terms += _term(match[1] or "", match[2])
        position = match.end()
        while position < len(text) and text[position] in ", \t":
            position += 1
    return terms


def _term(operator: str, version: str) -> list[str]:
    if version == "*":
        return []
    if operator == "^":
        return [f">={version}", f"<{_bump(version, _caret_index(version))}"]
    if operator == "~":
        return [f">={version}", f"<{_bump(version, min(1, len(_release(version)) - 1))}"]
    if operator in ("", "="):
        return [f"=={version}"]
    return [f"{operator}{version}"]


def _release(version: str) -> list[int]:
    match = re.match(r"\d+(\.\d+)*", version)
    if not match:
        raise ValueError(f"{version!r} is not a version")
    return [int(part) for part in match[0].split(".")]


def _caret_index(version: str) -> int:
    """The leftmost part that is not zero, or the last one given."""
    parts = _release(version)
    return next((index for index, part in enumerate(parts) if part), len(parts) - 1)


def _bump(version: str, index: int) -> str:
    parts = _release(version)[: index + 1]
    parts[index] += 1
    return ".".join(str(part) for part in parts)


def poetry_requirements(dependencies: Mapping[str, object]) -> list[str]:
    """The lines of a requirements file that ask for what `[tool.poetry.dependencies]` asks for.

    Optional dependencies are left out, as `poetry install` does. An entry that cannot be read becomes its bare name:
    the resolver then says what is wrong with it. Of alternatives (`^1 || ^2`) the last is taken, for a requirements
    file cannot say "or".
    """
    lines = []
    for name, value in dependencies.items():
        if name.lower() == "python":
            continue
        for entry in value if isinstance(value, list) else [value]:
            line = _requirement(name, entry if isinstance(entry, Mapping) else {"version": entry})
            if line:
                lines.append(line)
    return lines


def _requirement(name: str, entry: Mapping[str, object]) -> str:
    if entry.get("optional") is True:
        return ""
    if isinstance(entry.get("path"), str):
        path = str(entry["path"])
        plain = path if path.startswith((".", "/")) else f"./{path}"
        return f"-e {plain}" if entry.get("develop") is True else plain
    extras = entry.get("extras")
    wanted = name + (f"[{','.join(map(str, extras))}]" if isinstance(extras, list) and extras else "")
    if isinstance(entry.get("git"), str):
        reference = next((f"@{entry[key]}" for key in ("rev", "tag", "branch") if isinstance(entry.get(key), str)), "")
        folder = f"#subdirectory={entry['subdirectory']}" if isinstance(entry.get("subdirectory"), str) else ""
        git = re.sub(r"^git@([^:/]+):", r"ssh://git@\1/", str(entry["git"]))
        wanted += f" @ git+{git}{reference}{folder}"
    elif isinstance(entry.get("url"), str):
        wanted += f" @ {entry['url']}"
    else:
        wanted += _specifier(entry.get("version"))
    marker = _marker(entry)
    return f"{wanted} ; {marker}" if marker else wanted


def _specifier(version: object) -> str:
    if not isinstance(version, str):
        return ""
    try:
        return str(alternatives(version)[-1])
    except ValueError:
        return ""


def _marker(entry: Mapping[str, object]) -> str:
    parts = []
    if isinstance(entry.get("markers"), str):
        parts.append(f"({entry['markers']})")
    if isinstance(entry.get("platform"), str):
        parts.append(f"sys_platform == '{entry['platform']}'")
    if isinstance(entry.get("python"), str):
        try:
            sets = alternatives(str(entry["python"]))
        except ValueError:
            sets = []
        # Sorted, for a set has no order and this text is part of an environment's key.
        ordered = [sorted(specifiers, key=str) for specifiers in sets]
        either = [
            " and ".join(f"python_full_version {item.operator} '{item.version}'" for item in specifiers)
            for specifiers in ordered
        ]
        if either and all(either):
            parts.append("(" + " or ".join(either) + ")")
    return " and ".join(parts)
