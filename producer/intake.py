"""Anything -> Plan: a JSON file, standard input or a directory."""

from __future__ import annotations

import base64
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.delivery import link_stays
from shared.errors import PlanError, UsageError
from shared.plan import MAX_FILES, Plan, path_fault, slugify

STDIN = "-"

# Made by tools from what is in the plan, and made again by the farm.
LEFT_OUT_FOLDERS = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        ".orchestrator",
        ".venv",
        "venv",
        "node_modules",
        "__pycache__",
        ".pytest_cache",
        ".mypy_cache",
        ".ruff_cache",
        ".tox",
        ".nox",
        ".gradle",
        ".eggs",
    }
)
# Folders that hold build output only where the tool that makes them is in use beside them.
BUILD_FOLDERS = {
    "target": ("Cargo.toml", "pom.xml"),
    "build": ("build.gradle", "build.gradle.kts", "CMakeLists.txt"),
    "dist": ("package.json",),
}


def read_plan(source: str, *, max_bytes: int) -> Plan:
    """The plan behind a command's argument: `-`, a JSON file or a directory. Raises `PlanError`, `UsageError`."""
    if source == STDIN:
        return Plan.parse_json(
            _bounded(sys.stdin.buffer.read(max_bytes + 1), "standard input", max_bytes), source="standard input"
        )
    path = Path(source)
    if path.is_dir():
        return Plan.parse(directory_plan(path, max_bytes=max_bytes))
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > max_bytes:
                raise _too_large(source, size, max_bytes)
            text = stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise UsageError(
            f"no such plan: {source}", hint="PLAN is a JSON file, a directory, or - for standard input"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from None
    return Plan.parse_json(_bounded(text, source, max_bytes), source=source)


def directory_plan(folder: Path, *, max_bytes: int) -> dict[str, Any]:
    """A real directory as a plan's plain data.

    What git would leave out is left out (`.gitignore` files at every level), and so are dependency and build folders;
    run bits are kept, files that are not UTF-8 go as base64, links that stay inside are followed as copies.
    """
    files: list[dict[str, Any]] = []
    total = 0
    for path in sorted(_files(folder)):
        relative = path.relative_to(folder).as_posix()
        fault = path_fault(relative)
        if fault:
            raise PlanError.one("files", f"{relative}: {fault[0]}", fault[1])
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        total += len(content)
        if total > max_bytes:
            raise PlanError.one(
                "files",
                f"{folder} holds more than {max_bytes:,} bytes (at {relative}, {len(content):,} bytes)",
                "keep data out with a .gitignore, or raise limits.plan_bytes",
            )
        if len(files) >= MAX_FILES:
            raise PlanError.one(
                "files", f"{folder} holds more than {MAX_FILES:,} files", "keep generated files out with a .gitignore"
            )
        files.append(_entry(relative, content, executable=bool(path.stat().st_mode & stat.S_IXUSR)))
    if not files:
        raise PlanError.one("files", f"{folder} holds no file that git would track", "name the folder of a project")
    name = folder.resolve().name
    return {"name": name if slugify(name) else "project", "files": files}


def _entry(path: str, content: bytes, *, executable: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"filename": path, "code": ""}
    try:
        entry["code"] = content.decode("utf-8")
    except UnicodeDecodeError:
        entry |= {"code": base64.b64encode(content).decode(), "encoding": "base64"}
    entry["executable"] = executable
    return entry


def _files(folder: Path) -> Iterator[Path]:
    from pathspec import GitIgnoreSpec

    rules: list[tuple[str, GitIgnoreSpec]] = []
    for place, folders, names in os.walk(folder):
        here = Path(place)
        prefix = "" if here == folder else here.relative_to(folder).as_posix() + "/"
        rules = [(base, spec) for base, spec in rules if prefix.startswith(base)]
        ignore = here / ".gitignore"
        if ".gitignore" in names and ignore.is_file():
            rules.append(
                (prefix, GitIgnoreSpec.from_lines(ignore.read_text(encoding="utf-8", errors="replace").splitlines()))
            )
        kept = []
        for name in sorted(folders):
            if name in LEFT_OUT_FOLDERS or any((here / sign).exists() for sign in BUILD_FOLDERS.get(name, ())):
                continue
            if _ignored(f"{prefix}{name}/", rules):
                continue
            if (here / name).is_symlink():
                continue
            kept.append(name)
        folders[:] = kept
        for name in names:
            path = here / name
            if _ignored(f"{prefix}{name}", rules):
                continue
            if path.is_symlink() and not (link_stays(path, folder) and path.is_file()):
                continue
            if path.is_file():
                yield path


def _ignored(path: str, rules: list[tuple[str, Any]]) -> bool:
    """Whether git would ignore it: the innermost rule that speaks of it decides."""
    for base, spec in reversed(rules):
        verdict = spec.check_file(path[len(base) :]).include
        if verdict is not None:
            return bool(verdict)
    return False


def _bounded(text: bytes, source: str, max_bytes: int) -> bytes:
    if len(text) > max_bytes:
        raise _too_large(source, len(text), max_bytes)
    return text


def _too_large(source: str, size: int, max_bytes: int) -> PlanError:
    return PlanError.one(
        "",
        f"{source} is at least {size:,} bytes, the limit is {max_bytes:,}",
        "leave data files out of the plan, or raise limits.plan_bytes",
    )
