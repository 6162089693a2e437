"""The Stack protocol and what stacks speak in.

A stack is pure: from a plan's files and a layout it returns commands, and runs nothing. So the producer can use it to
route, golden tests need no toolchain, and every sandbox works. The model is pre-commit's `languages/`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol

from shared.plan import Plan


class FileTree:
    """The files of a project, read-only: path to bytes."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = dict(files)

    @classmethod
    def of(cls, plan: Plan) -> FileTree:
        return cls({file.filename: file.content for file in plan.files})

    def __contains__(self, path: object) -> bool:
        return path in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._files))

    def __len__(self) -> int:
        return len(self._files)

    def bytes(self, path: str) -> bytes:
        return self._files[path]

    def text(self, path: str) -> str:
        """The file as text, empty when it is not there; bytes that are not UTF-8 are replaced."""
        return self._files.get(path, b"").decode("utf-8", "replace").removeprefix("\ufeff")

    def root(self, pattern: str) -> list[str]:
        """Files directly in the project's folder that match a glob."""
        return [path for path in self if "/" not in path and fnmatchcase(path, pattern)]

    def matching(self, pattern: str) -> list[str]:
        """Files anywhere whose last component matches a glob."""
        return [path for path in self if fnmatchcase(path.rpartition("/")[2], pattern)]

    def folder(self, name: str) -> FileTree:
        """The files below a folder, with paths relative to it."""
        prefix = f"{name}/"
        return FileTree({path[len(prefix) :]: data for path, data in self._files.items() if path.startswith(prefix)})

    def folders(self) -> list[str]:
        """Names of the folders directly in the project's folder."""
        return sorted({path.split("/", 1)[0] for path in self if "/" in path})


@dataclass(frozen=True)
class Evidence:
    """Why a stack was chosen.

    `strength`: 4 a manifest that claims those of other stacks (a Python package that CMake builds), 3 a manifest at the
    root, 2 bare sources, 1 something weaker.
    """

    stack: str
    manager: str
    reason: str
    strength: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """One command of a stage. Exactly one of `argv` and `shell` is set.

    `network`: it needs registries. `fallback` is tried when the command fails, and `fallback_note` is then a warning of
    the result. Paths are those a build sees (`Layout`).
    """

    argv: tuple[str, ...] = ()
    shell: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    network: bool = False
    fallback: Command | None = None
    fallback_note: str = ""
    retry_on_corrupt_cache: tuple[str, ...] = ()

    @property
    def display(self) -> str:
        """The command as a person would type it."""
        import shlex

        return self.shell or shlex.join(self.argv)


@dataclass(frozen=True)
class Runtime:
    """One interpreter or toolchain present on the worker. `root` is the folder a sandbox has to show."""

    name: str
    version: str
    path: str
    root: str


@dataclass(frozen=True)
class Tool:
    """A program a stack needs that is installed on first use into the worker's tool store, at a pinned version.

    `install` are its commands with the tool's folder at `home`; `executable` is relative to that folder.
    """

    name: str
    version: str
    executable: str
    install: tuple[Command, ...]
    home: str

    @property
    def path(self) -> str:
        return f"{self.home}/{self.executable}"


@dataclass(frozen=True)
class Layout:
    """Where things are, as a build's commands see them."""

    workspace: str = "/workspace"
    runtime: Runtime | None = None
    uv: str = "/opt/orchestrator/bin/uv"
    tool_root: str = "/opt/orchestrator/tools"
    cache: str = "/var/cache/orchestrator"


@dataclass(frozen=True)
class EnvironmentSpec:
    """What an environment is made of, and so what it is keyed by.

    Its `commands` run in a workspace that holds only `files`, so that nothing outside the key can get in. `paths` are
    the folders, relative to the workspace, that make up the environment and are mounted into later builds.
    """

    stack: str
    manager: str
    runtime: str
    files: Mapping[str, bytes]
    commands: tuple[Command, ...]
    paths: tuple[str, ...]
    tools: tuple[Tool, ...] = ()
    freeze: Command | None = None
    reason: str = ""

    @property
    def key(self) -> str:
        """Content key: equal specs on equal platforms share one environment."""
        document = {
            "stack": self.stack,
            "manager": self.manager,
            "runtime": self.runtime,
            "files": {path: hashlib.sha256(data).hexdigest() for path, data in sorted(self.files.items())},
            "commands": [[command.display, dict(command.env)] for command in self.commands],
            "paths": self.paths,
            "tools": [f"{tool.name}=={tool.version}" for tool in self.tools],
        }
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class RuntimeChoice:
    """The runtime a project gets, or why none will do (`runtime` is None and `wanted` says what was asked for)."""

    runtime: Runtime | None
    wanted: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunChoice:
    """How the project is started, and how that was found out. `command` is None when there is nothing to start."""

    command: Command | None
    reason: str = ""
    warnings: tuple[str, ...] = ()


class Stack(Protocol):
    """One language's way of installing, building and running a project."""

    NAME: str
    MANIFESTS: tuple[str, ...]
    RUN_WORDS: tuple[str, ...]

    def detect(self, files: FileTree) -> Evidence | None:
        """Whether these files are of this stack, and how that shows."""
        ...

    def probe(self) -> Sequence[Command]:
        """Commands that print the versions of the toolchain; all must exit 0."""
        ...

    def choose_runtime(self, plan: Plan, files: FileTree, present: Sequence[Runtime]) -> RuntimeChoice:
        """The runtime the project asks for, over those present."""
        ...

    def environment(self, plan: Plan, files: FileTree, layout: Layout) -> EnvironmentSpec | None:
        """The shareable environment of the project's dependencies; None when the stack has none."""
        ...

    def install(self, plan: Plan, files: FileTree, layout: Layout) -> Sequence[Command]:
        """What remains to install for this project alone, over its environment."""
        ...

    def build(self, plan: Plan, files: FileTree, layout: Layout) -> Sequence[Command]: ...

    def run(self, plan: Plan, files: FileTree, layout: Layout) -> RunChoice: ...

    def command_env(self, layout: Layout) -> Mapping[str, str]:
        """Variables every command of a build of this stack sees (PATH among them)."""
        ...

    def run_script(self, plan: Plan, files: FileTree, command: str, pins: str, runtime: Runtime | None = None) -> str:
        """A `run.sh` that installs what is missing, then runs.

        `pins`: the exact versions installed here; `runtime`: what it was built with, preferred where it is run.
        """
        ...


def merge(*groups: Iterable[str]) -> tuple[str, ...]:
    """Texts in order, each once."""
    seen: dict[str, None] = {}
    for group in groups:
        seen.update(dict.fromkeys(group))
    return tuple(seen)
