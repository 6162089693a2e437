"""Which interpreter a Python project gets, and what Poetry's constraints mean."""

from __future__ import annotations

import pytest

from shared.plan import Plan
from shared.stacks import STACKS
from shared.stacks.base import FileTree, Runtime, RuntimeChoice
from shared.stacks.python_constraints import alternatives, poetry_requirements

STACK = STACKS["python"]


def plan_of(files: dict[str, str] | None = None, **fields: object) -> Plan:
    entries = [{"filename": path, "code": text} for path, text in (files or {}).items()]
    return Plan.parse({"name": "app", "files": entries or [{"filename": "notes.txt", "code": ""}], **fields})


def runtimes(*versions: str) -> list[Runtime]:
    return [Runtime("python", version, f"/p/{version}", "/p") for version in versions]


PRESENT = runtimes("3.11.7", "3.11.2", "3.13.0", "3.12.1", "3.9.18")


def chosen(files: dict[str, str], present: list[Runtime] = PRESENT) -> RuntimeChoice:
    plan = plan_of(files)
    return STACK.choose_runtime(plan, FileTree.of(plan), present)


def requires(text: str) -> dict[str, str]:
    return {"pyproject.toml": f'[project]\nname = "a"\nrequires-python = "{text}"\n'}


@pytest.mark.parametrize(
    ("files", "version", "warning"),
    [
        ({}, "3.11.7", ""),
        ({".python-version": "3.12\n"}, "3.12.1", ""),
        ({".python-version": "# mine\ncpython-3.11.2\n3.9"}, "3.11.2", ""),
        ({".python-version": "3.11.9"}, "3.11.7", "asks for Python 3.11.9; using 3.11.7"),
        ({".python-version": "3.10"}, "3.11.7", "asks for Python 3.10; using 3.11.7"),
        ({".python-version": "3.14.1"}, "3.13.0", "using 3.13.0"),
        ({".python-version": "pypy3.10"}, "3.11.7", "not a version of CPython"),
        ({".python-version": "3"}, "3.11.7", ""),
        ({".tool-versions": "nodejs 20\npython 3.12.1 3.11\n"}, "3.12.1", ""),
        ({"runtime.txt": "python-3.9.18"}, "3.9.18", ""),
        ({"Pipfile": '[requires]\npython_version = "3.12"\n'}, "3.12.1", ""),
        ({"Pipfile": '[requires]\npython_full_version = "3.11.2"\npython_version = "3.11"\n'}, "3.11.2", ""),
        ({".python-version": "3.12", "runtime.txt": "python-3.9.1"}, "3.12.1", "wins over runtime.txt"),
        ({".python-version": "3.12", "runtime.txt": "python-3.12.1"}, "3.12.1", ""),
        (requires(">=3.9"), "3.11.7", ""),
        (requires(">=3.12"), "3.13.0", ""),
        (requires(">=3.12,<3.13"), "3.12.1", ""),
        (requires("==3.11.2"), "3.11.2", ""),
        (requires("three"), "3.11.7", "not a version range"),
        ({**requires(">=3.12"), ".python-version": "3.12"}, "3.12.1", ""),
        ({**requires(">=3.12"), ".python-version": "3.11"}, "3.12.1", "rules out"),
        ({"pyproject.toml": '[tool.poetry.dependencies]\npython = "~3.12"\n'}, "3.12.1", ""),
        ({"pyproject.toml": '[tool.poetry.dependencies]\npython = "~3.9 || ^3.13"\n'}, "3.13.0", ""),
        ({"setup.cfg": "[options]\npython_requires = >=3.12,<3.13\n"}, "3.12.1", ""),
    ],
)
def test_the_interpreter_asked_for_is_chosen_and_a_compromise_is_said(files, version, warning):
    choice = chosen(files)
    assert choice.runtime is not None
    assert choice.runtime.version == version
    assert warning in "\n".join(choice.warnings)
    if not warning:
        assert choice.warnings == ()


def test_a_range_that_nothing_satisfies_gives_no_interpreter_and_says_what_was_wanted():
    choice = chosen(requires(">=3.99"))
    assert choice.runtime is None
    assert ">=3.99" in choice.wanted
    assert "requires-python" in choice.wanted


def test_a_prerelease_is_chosen_only_when_nothing_else_will_do():
    assert chosen(requires(">=3.12"), runtimes("3.11.7", "3.14.0rc1", "3.12.1")).runtime == runtimes("3.12.1")[0]
    assert chosen(requires(">=3.14"), runtimes("3.11.7", "3.14.0rc1")).runtime is None  # before 3.14
    assert chosen(requires(">=3.13"), runtimes("3.11.7", "3.14.0rc1")).runtime == runtimes("3.14.0rc1")[0]


def test_interpreters_of_other_languages_are_not_pythons():
    assert chosen({}, [Runtime("node", "22.0.0", "/n", "/n")]).runtime is None


@pytest.mark.parametrize(
    ("constraint", "inside", "outside"),
    [
        ("^1.2.3", ["1.2.3", "1.9"], ["2.0", "1.2.2"]),
        ("^0.2.3", ["0.2.9"], ["0.3.0"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4"]),
        ("^0.0", ["0.0.9"], ["0.1"]),
        ("~1.2.3", ["1.2.9"], ["1.3"]),
        ("~1", ["1.9"], ["2"]),
        ("1.*", ["1.5"], ["2.0"]),
        ("1.2.3", ["1.2.3"], ["1.2.4"]),
        (">=1.2 <2", ["1.9"], ["2.0"]),
        ("~=1.4", ["1.9"], ["2.0"]),
        ("*", ["0.1", "9"], []),
        ("^1 | ^3", ["1.1", "3.1"], ["2.0"]),
    ],
)
def test_poetrys_constraints_mean_what_its_documentation_says(constraint, inside, outside):
    sets = alternatives(constraint)
    assert all(any(item.contains(version) for item in sets) for version in inside)
    assert not any(item.contains(version) for item in sets for version in outside)


def test_poetrys_dependency_table_becomes_requirements():
    assert poetry_requirements(
        {
            "python": "^3.11",
            "plain": "*",
            "caret": "^1.2",
            "extra": {"version": "^2", "extras": ["a", "b"]},
            "optional": {"version": "1", "optional": True},
            "marked": {"version": ">=1", "markers": "sys_platform == 'linux'", "python": ">=3.8,<3.12"},
            "git": {"git": "git@example.org:o/r.git", "tag": "v1", "subdirectory": "s"},
            "path": {"path": "lib/x", "develop": True},
            "many": [{"version": "1", "python": "<3.9"}, {"version": "2", "python": ">=3.9"}],
            "nonsense": "?!",
        }
    ) == [
        "plain",
        "caret<2,>=1.2",
        "extra[a,b]<3,>=2",
        "marked>=1 ; (sys_platform == 'linux') and (python_full_version < '3.12' and python_full_version >= '3.8')",
        "git @ git+ssh://git@example.org/o/r.git@v1#subdirectory=s",
        "-e ./lib/x",
        "many==1 ; (python_full_version < '3.9')",
        "many==2 ; (python_full_version >= '3.9')",
        "nonsense",
    ]
