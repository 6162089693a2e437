"""Which interpreters a worker finds: real programs only, each once, its own first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from shared.errors import SandboxError
from worker import toolchains

ELF = b"\x7fELF" + b"\0" * 12


class Machine:
    """A machine made of files, and what its interpreters answer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.answers: dict[str, str] = {}
        self.asked: list[list[str]] = []

    def interpreter(self, path: str, version: str, *, name: str = "cpython", content: bytes = ELF) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(0o755)
        self.answers[str(file)] = f"{name}\n{version}\n{file.parent.parent}\n"
        return file

    def probe(self, argv: list[str]) -> str:
        self.asked.append(argv)
        return self.answers[argv[0]]

    def discover(self, own: Path, **environ: str) -> list[tuple[str, str]]:
        found = toolchains.discover(self.probe, environ=environ, own=own, system=(self.root / "usr/bin",))
        return [(runtime.version, str(Path(runtime.path).relative_to(self.root))) for runtime in found]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path.resolve())


def test_the_workers_own_comes_first_then_the_systems_the_paths_and_the_stores(machine):
    own = machine.interpreter("own/bin/python3.11", "3.11.7")
    machine.interpreter("usr/bin/python3.9", "3.9.2")
    machine.interpreter("usr/bin/python3.13", "3.13.1")
    machine.interpreter("opt/bin/python3.12", "3.12.5")
    machine.interpreter("pyenv/versions/3.9.18/bin/python3.9", "3.9.18")
    machine.interpreter("pyenv/versions/3.10.13/bin/python3.10", "3.10.13")
    machine.interpreter("home/.local/share/uv/python/cpython-3.14.0-x/bin/python3.14", "3.14.0")
    found = machine.discover(
        own, PATH=f"relative:{machine.root}/opt/bin", PYENV_ROOT=f"{machine.root}/pyenv", HOME=f"{machine.root}/home"
    )
    assert [version for version, _ in found] == ["3.11.7", "3.13.1", "3.9.2", "3.12.5", "3.10.13", "3.9.18", "3.14.0"]


def test_links_lead_to_one_entry_at_the_real_path(machine):
    own = machine.interpreter("real/bin/python3.11", "3.11.7")
    (machine.root / "usr/bin").mkdir(parents=True)
    (machine.root / "usr/bin/python3.11").symlink_to(own)
    (machine.root / "venv/bin").mkdir(parents=True)
    (machine.root / "venv/bin/python3.11").symlink_to(machine.root / "usr/bin/python3.11")
    assert machine.discover(machine.root / "venv/bin/python3.11", PATH=f"{machine.root}/venv/bin") == [
        ("3.11.7", "real/bin/python3.11")
    ]
    assert len(machine.asked) == 1


def test_shims_and_broken_links_are_never_run(machine):
    own = machine.interpreter("own/bin/python3.11", "3.11.7")
    machine.interpreter("shims/python3.12", "3.12.0", content=b"#!/bin/sh\nexit 127\n")
    (machine.root / "shims/python3.10").symlink_to(machine.root / "nowhere")
    (machine.root / "shims/python3.9").symlink_to(machine.root / "shims/python3.9")
    machine.interpreter("shims/python3.13", "3.13.0").chmod(0o644)
    assert machine.discover(own, PATH=f"{machine.root}/shims") == [("3.11.7", "own/bin/python3.11")]
    assert [argv[0] for argv in machine.asked] == [str(own)]


def test_names_that_are_no_interpreter_are_never_run(machine):
    own = machine.interpreter("own/bin/python3.11", "3.11.7")
    for name in ("python3.11-config", "python3.13t", "python3", "python2.7"):
        machine.interpreter(f"usr/bin/{name}", "3.13.0")
    assert len(machine.discover(own)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "cpython\n3.7.17\n/x\n",
        "pypy\n3.10.1\n/x\n",
        "cpython\nthree\n/x\n",
        "cpython\n3.12.0\nrelative\n",
        "hello\n",
    ],
)
def test_an_answer_that_will_not_do_leaves_the_interpreter_out(machine, answer):
    own = machine.interpreter("own/bin/python3.11", "3.11.7")
    machine.answers[str(machine.interpreter("usr/bin/python3.12", "3.12.0"))] = answer
    assert [version for version, _ in machine.discover(own)] == ["3.11.7"]


@pytest.mark.parametrize("error", [OSError("no"), SandboxError("no")])
def test_an_interpreter_that_cannot_be_asked_is_left_out(machine, error):
    own = machine.interpreter("own/bin/python3.11", "3.11.7")
    broken = str(machine.interpreter("usr/bin/python3.12", "3.12.0"))

    def probe(argv: list[str]) -> str:
        if argv[0] == broken:
            raise error
        return machine.probe(argv)

    found = toolchains.discover(probe, environ={}, own=own, system=(machine.root / "usr/bin",))
    assert [runtime.version for runtime in found] == ["3.11.7"]


def test_the_root_is_the_interpreters_prefix_and_it_is_asked_in_isolation(machine):
    own = machine.interpreter("own/bin/python3.11", "3.11.7")
    found = toolchains.discover(machine.probe, environ={}, own=own, system=())
    assert found[0].root == str(machine.root / "own")
    assert machine.asked[0][1:4] == ["-I", "-S", "-c"]


def test_on_this_machine_the_interpreter_that_runs_the_tests_is_found():
    import subprocess

    def probe(argv: list[str]) -> str:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout

    found = toolchains.discover(probe, environ={}, system=())
    assert [runtime.version for runtime in found] == [".".join(map(str, sys.version_info[:3]))]
    assert found[0].root == sys.base_prefix
