"""Which stack a plan gets: the order of precedence, folders, ambiguity, and what is said about it."""

from __future__ import annotations

import time

import pytest

from shared.errors import PlanError
from shared.plan import Plan
from shared.stacks import STACKS
from shared.stacks.base import FileTree
from shared.stacks.detection import Detection, detect, names, run_word, stack_of_word


def detected(*paths: str, contents: dict[str, str] | None = None, **fields: object) -> Detection:
    files = {**dict.fromkeys(paths, ""), **(contents or {})}
    plan = Plan.parse(
        {"name": "x", "files": [{"filename": path, "code": text} for path, text in files.items()], **fields}
    )
    return detect(plan, FileTree.of(plan))


@pytest.mark.parametrize(
    ("paths", "fields", "stack"),
    [
        (("go.mod", "main.py"), {"stack": "python"}, "python"),
        (("go.mod",), {"run": "python x.py"}, "python"),
        (("requirements.txt", "package.json"), {"run": "npm start"}, "node"),
        (("requirements.txt",), {"run": "make run"}, "python"),
        (("main.c",), {"run": "make run"}, "cpp"),
        (("notes.txt",), {"run": "make run"}, "cpp"),
        (("pom.xml",), {"run": "./start.sh"}, "java"),
        (("go.work", "requirements.txt"), {}, "go"),
        (("Cargo.toml", "requirements.txt"), {}, "rust"),
        (("build.gradle.kts", "x.py"), {}, "java"),
        (("CMakeLists.txt", "x.py"), {}, "cpp"),
        (("requirements.txt", "package.json"), {}, "python"),
        (("package.json", "tool.py"), {}, "node"),
        (("main.go",), {}, "go"),
        (("app.py",), {}, "python"),
        (("Main.java",), {}, "java"),
        (("main.cpp",), {}, "cpp"),
        (("index.ts",), {}, "node"),
        (("pkg/__init__.py", "pkg/core.py"), {}, "python"),
        (("src/thing.py",), {}, "python"),
        (("data.csv",), {"run": "wc -l data.csv"}, "generic"),
        (("data.csv",), {"run": "'unbalanced"}, "generic"),
        (("go.sh",), {}, "generic"),
        ((), {"run": "echo hi"}, "generic"),
        ((), {"post_install": ["echo hi"]}, "generic"),
        ((), {"deps": ["six"], "stack": "python"}, "python"),
    ],
)
def test_the_stack_follows_the_order_of_precedence(paths, fields, stack):
    assert detected(*paths, **fields).stack == stack


@pytest.mark.parametrize(
    ("run", "word"),
    [
        ("python main.py", "python"),
        ("python3.12 -m x", "python"),
        ("./.venv/bin/python x", "python"),
        ("cd backend && PORT=1 exec uvicorn a:b", "uvicorn"),
        ("export A=1; node .", "node"),
        ("env A=b npm start", "npm"),
        ("./gradlew run", "gradlew"),
        ("FOO='a b' cargo run", "cargo"),
        ("", ""),
        ("'", "'"),
    ],
)
def test_the_first_word_of_a_run_is_the_program_it_starts(run, word):
    assert run_word(run) == word


def test_every_registered_stack_is_known_by_its_name_and_its_run_words():
    for name, stack in STACKS.items():
        assert name in names()
        assert {stack_of_word(word) for word in stack.RUN_WORDS} == {name}


@pytest.mark.parametrize("backend", ["scikit_build_core.build", "maturin", "mesonpy"])
def test_a_python_package_that_builds_native_code_claims_the_other_manifests(backend):
    pyproject = f'[build-system]\nbuild-backend = "{backend}"\n[project]\nname = "x"\n'
    found = detected("CMakeLists.txt", "Cargo.toml", contents={"pyproject.toml": pyproject})
    assert found.stack == "python"
    assert backend in found.reason


def test_a_pyproject_of_tool_settings_does_not_make_a_node_project_python():
    settings = {"pyproject.toml": "[tool.ruff]\nline-length = 100\n"}
    assert detected("package.json", contents=settings).stack == "node"
    assert detected("main.py", contents=settings).stack == "python"


def test_python_with_package_json_says_that_node_is_there_too():
    found = detected("requirements.txt", "package.json")
    assert found.also == ("node",)
    assert "package.json" in found.reason


def test_the_only_child_folder_that_is_a_project_is_the_project():
    found = detected("README.md", "backend/requirements.txt", "backend/main.py", "docs/index.md")
    assert (found.stack, found.folder) == ("python", "backend")
    assert "backend/" in found.reason
    assert found.evidence.manager == "requirements"


def test_a_folder_that_imports_itself_by_name_is_a_package_and_no_project_of_its_own():
    found = detected("app/db.py", contents={"app/main.py": "from app.db import x\n"})
    assert (found.stack, found.folder) == ("python", "")


def test_a_run_at_the_root_still_finds_the_folder_with_the_manifest():
    found = detected("api/requirements.txt", "web/package.json", run="python api/main.py")
    assert (found.stack, found.folder) == ("python", "api")
    named = detected("api/requirements.txt", "web/package.json", stack="python")
    assert (named.stack, named.folder) == ("python", "api")


def test_two_projects_side_by_side_are_refused_by_name_without_a_run():
    with pytest.raises(PlanError) as caught:
        detected("api/requirements.txt", "web/package.json")
    assert "api/ looks like python" in str(caught.value)
    assert "web/ looks like node" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("pyhton", "'python'"),
        ("Python", "'python'"),
        ("golang", "'go'"),
        ("nodejs", "'node'"),
        ("c++", "'cpp'"),
        ("bash", "'generic'"),
    ],
)
def test_an_unknown_stack_names_the_field_and_the_nearest_right_one(name, suggestion):
    with pytest.raises(PlanError) as caught:
        detected("main.py", stack=name)
    assert caught.value.problems[0].field == "stack"
    assert f"did you mean {suggestion}" in caught.value.problems[0].hint


def test_a_plan_that_shows_nothing_is_refused_with_what_would_be_right():
    with pytest.raises(PlanError) as caught:
        detected("README.md", "data.csv")
    assert caught.value.problems[0].field == "files"
    assert "data.csv" in caught.value.problems[0].message
    assert "pyproject.toml" in caught.value.problems[0].hint
    with pytest.raises(PlanError) as caught:
        detected(deps=["six"])
    assert caught.value.problems[0].field == "stack"


def test_options_among_deps_are_refused():
    with pytest.raises(PlanError) as caught:
        detected("main.py", deps=["six", "-r requirements.txt"])
    assert caught.value.problems[0].field == "deps[1]"


def test_the_warnings_of_the_chosen_stack_are_passed_on():
    found = detected("main.py", contents={"uv.lock": ""})
    assert any("uv.lock" in warning for warning in found.warnings)


def test_a_flood_of_folders_is_answered_quickly():
    started = time.process_time()
    with pytest.raises(PlanError):
        detected(*(f"d{number}/x.py" for number in range(5000)))
    assert time.process_time() - started < 5
