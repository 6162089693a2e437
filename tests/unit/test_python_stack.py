"""The Python stack: the exact commands for each manager, what an environment is keyed by, which manifest decides."""

from __future__ import annotations

import json

import pytest

from shared.plan import Plan
from shared.stacks import STACKS
from shared.stacks.base import FileTree, Layout, Runtime

STACK = STACKS["python"]
PYTHON = Runtime("python", "3.11.7", "/py/bin/python3.11", "/py")
LAYOUT = Layout(workspace="/workspace", runtime=PYTHON, uv="/t/uv", tool_root="/t/tools", cache="/c")
VENV = "uv venv .venv --python /py/bin/python3.11 --no-project"
INSTALL = "uv pip install --python .venv/bin/python --compile-bytecode"
PIP = "uv pip install --python .venv/bin/python pip"

PROJECT = '[project]\nname = "app"\nversion = "1"\ndependencies = ["six"]\n'
BUILD = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
POETRY = '[tool.poetry]\nname = "app"\n[tool.poetry.dependencies]\npython = "^3.11"\nsix = "^1.16"\n'
UV_LOCK = (
    '[[package]]\nname = "app"\nversion = "1"\nsource = { virtual = "." }\n[[package]]\nname = "six"\nversion = "1"\n'
)
OTHER_LOCK = '[[package]]\nname = "six"\nversion = "1.17.0"\n'
PIPFILE = '[packages]\nsix = "*"\n'
PIPFILE_LOCK = '{"default": {"six": {"version": "==1.17.0"}}}'


def plan_of(files: dict[str, str] | None = None, **fields: object) -> Plan:
    entries = [{"filename": path, "code": text} for path, text in (files or {}).items()]
    return Plan.parse({"name": "app", "files": entries or [{"filename": "notes.txt", "code": ""}], **fields})


def commands_of(files: dict[str, str], **fields: object) -> list[str]:
    plan = plan_of(files, **fields)
    spec = STACK.environment(plan, FileTree.of(plan), LAYOUT)
    assert spec is not None
    texts = [command.display.replace("/t/uv", "uv") for command in spec.commands]
    for tool in spec.tools:
        texts = [text.replace(tool.path, tool.name) for text in texts]
    return texts


def spec_of(files: dict[str, str], **fields: object):
    plan = plan_of(files, **fields)
    spec = STACK.environment(plan, FileTree.of(plan), LAYOUT)
    assert spec is not None
    return spec


def warnings_of(files: dict[str, str]) -> str:
    evidence = STACK.detect(FileTree({path: text.encode() for path, text in files.items()}))
    assert evidence is not None
    return "\n".join(evidence.warnings)


EXPORT = "poetry export --only main --format requirements.txt --output .orchestrator/exported.txt"
SYNC = "uv sync --frozen --no-dev --no-install-project --compile-bytecode --python /py/bin/python3.11"
COMPILE = "sh -c '.venv/bin/python -m compileall -q .venv/lib || true'"


@pytest.mark.parametrize(
    ("files", "manager", "commands"),
    [
        ({"main.py": ""}, "none", []),
        ({"requirements.txt": "six\n"}, "requirements", [f"{INSTALL} -r requirements.txt"]),
        ({"pyproject.toml": PROJECT}, "pyproject", [f"{INSTALL} -r pyproject.toml"]),
        ({"pyproject.toml": POETRY}, "pyproject", [f"{INSTALL} -r .orchestrator/unlocked.txt"]),
        ({"setup.py": "setup()"}, "setup", [f"{INSTALL} -r setup.py"]),
        ({"pyproject.toml": PROJECT, "uv.lock": UV_LOCK}, "uv", [SYNC]),
        (
            {"pyproject.toml": POETRY, "poetry.lock": OTHER_LOCK},
            "poetry",
            [EXPORT, f"{INSTALL} -r .orchestrator/exported.txt"],
        ),
        ({"pyproject.toml": PROJECT, "pdm.lock": OTHER_LOCK}, "pdm", ["pdm sync --prod --no-self", COMPILE]),
        ({"Pipfile": PIPFILE, "Pipfile.lock": PIPFILE_LOCK}, "pipenv", ["pipenv sync"]),
        ({"Pipfile": PIPFILE}, "pipenv", ["pipenv install --skip-lock"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_manager_has_exactly_these_commands(files, manager, commands):
    assert spec_of(files).manager == manager
    assert commands_of(files) == [VENV, *commands, PIP]


@pytest.mark.parametrize(
    ("files", "command"),
    [
        (
            {"pyproject.toml": PROJECT.replace('"six"', '"six", "idna"'), "uv.lock": UV_LOCK},
            SYNC.replace(" --frozen", ""),
        ),
        ({"pyproject.toml": PROJECT.replace("six", "idna"), "pdm.lock": OTHER_LOCK}, "pdm install --prod --no-self"),
        ({"Pipfile": '[packages]\nidna = "*"\n', "Pipfile.lock": PIPFILE_LOCK}, "pipenv install"),
    ],
)
def test_a_lock_that_lacks_what_is_asked_for_is_brought_in_step_with_a_warning(files, command):
    assert commands_of(files)[1] == command
    assert "idna is not in it" in warnings_of(files)


def test_a_poetry_lock_that_does_not_fit_is_replaced_by_what_pyproject_asks_for():
    spec = spec_of({"pyproject.toml": POETRY, "poetry.lock": OTHER_LOCK})
    export = spec.commands[1]
    assert export.fallback is not None
    assert export.fallback.argv == ("cp", ".orchestrator/unlocked.txt", ".orchestrator/exported.txt")
    assert spec.files[".orchestrator/unlocked.txt"] == b"six<2,>=1.16\n"
    assert "poetry.lock" in export.fallback_note


def test_deps_of_the_plan_join_an_unlocked_manifest_and_follow_a_lock():
    deps = ["flask>=3", "idna"]
    assert commands_of({"requirements.txt": "six"}, deps=deps)[1] == f"{INSTALL} -r requirements.txt 'flask>=3' idna"
    assert commands_of({"main.py": ""}, deps=deps)[1:] == [f"{INSTALL} 'flask>=3' idna", PIP]
    locked = commands_of({"pyproject.toml": PROJECT, "uv.lock": UV_LOCK}, deps=deps)
    assert locked[1:] == [SYNC, f"{INSTALL} 'flask>=3' idna", PIP]


def test_uv_never_downloads_interpreters_and_keeps_its_cache_in_the_layout():
    spec = spec_of({"requirements.txt": "six"})
    assert spec.freeze is not None
    for command in (*spec.commands, spec.freeze):
        assert command.env["UV_PYTHON_DOWNLOADS"] == "never"
        assert command.env["UV_CACHE_DIR"] == "/c/uv"
        assert command.env["UV_LINK_MODE"] == "copy"
    assert spec.commands[1].retry_on_corrupt_cache == ("--refresh",)
    assert [command.network for command in spec.commands] == [False, True, True]
    assert spec.paths == (".venv",)


def test_a_project_without_dependencies_installs_without_a_registry():
    pip = spec_of({"main.py": ""}).commands[-1]
    assert pip.fallback is not None
    assert "ensurepip" in pip.fallback.display
    assert pip.env["UV_HTTP_RETRIES"] == "0"


@pytest.mark.parametrize(
    ("version", "pin"),
    [
        ("3.8.18", "poetry==1.8.5"),
        ("3.9.18", "poetry==2.2.1"),
        ("3.10.1", "poetry==2.5.1"),
        ("3.13.0", "poetry==2.5.1"),
    ],
)
def test_a_manager_is_installed_at_a_pinned_version_that_runs_on_the_interpreter(version, pin):
    plan = plan_of({"pyproject.toml": POETRY, "poetry.lock": OTHER_LOCK})
    layout = Layout(runtime=Runtime("python", version, "/x/python", "/x"), uv="/t/uv", tool_root="/t/tools")
    spec = STACK.environment(plan, FileTree.of(plan), layout)
    assert spec is not None
    tool = spec.tools[0]
    assert pin in tool.install[1].argv
    assert tool.home.startswith(f"/t/tools/poetry-{tool.version}-")
    assert tool.install[0].argv[:3] == ("/t/uv", "venv", tool.home)
    assert spec.commands[1].argv[0] == f"{tool.home}/bin/poetry"


def test_two_interpreters_never_share_an_installed_manager():
    plan = plan_of({"Pipfile": PIPFILE})
    homes = set()
    for path in ("/usr/bin/python3.11", "/py/bin/python3.11"):
        spec = STACK.environment(plan, FileTree.of(plan), Layout(runtime=Runtime("python", "3.11.7", path, "/")))
        assert spec is not None
        homes.add(spec.tools[0].home)
    assert len(homes) == 2


# --- what the environment's key covers


def test_included_requirements_and_constraints_are_part_of_the_environment_and_sources_are_not():
    files = {
        "requirements.txt": "-r req/base.txt\n--constraint=req/c.txt\nsix\n",
        "req/base.txt": "-r more.txt  # beside it\n",
        "req/more.txt": "-r ../requirements.txt\nidna\n",
        "req/c.txt": "idna<4",
        "main.py": "print(1)",
        "req/unused.txt": "x",
    }
    spec = spec_of(files)
    assert set(spec.files) == {"requirements.txt", "req/base.txt", "req/more.txt", "req/c.txt"}
    assert spec_of({**files, "main.py": "print(2)"}).key == spec.key
    assert spec_of({**files, "req/c.txt": "idna<3"}).key != spec.key


@pytest.mark.parametrize(
    "files",
    [
        {"requirements.txt": "-e .\n"},
        {"requirements.txt": "./lib/foo\n"},
        {"requirements.txt": "-r more.txt\n", "more.txt": "--editable=lib/foo\n"},
        {"requirements.txt": "foo @ file:./lib/foo\n"},
        {"requirements.txt": "wheels/foo-1-py3-none-any.whl\n"},
        {
            "pyproject.toml": PROJECT,
            "uv.lock": UV_LOCK + '[[package]]\nname = "foo"\nsource = { editable = "lib/foo" }\n',
        },
        {"pyproject.toml": PROJECT + '[tool.uv.sources]\nsix = { path = "lib/six" }\n'},
        {
            "pyproject.toml": POETRY,
            "poetry.lock": OTHER_LOCK + '[package.source]\ntype = "directory"\nurl = "lib/six"\n',
        },
        {"pyproject.toml": POETRY + 'foo = { path = "lib/foo" }\n'},
        {"pyproject.toml": PROJECT, "pdm.lock": OTHER_LOCK + 'path = "./lib/six"\n'},
        {"Pipfile": PIPFILE, "Pipfile.lock": '{"default": {"six": {"path": "."}}}'},
        {"pyproject.toml": '[project]\nname = "a"\ndynamic = ["version", "dependencies"]\n' + BUILD},
        {"setup.py": "setup()"},
    ],
    ids=lambda files: next(iter(files.values()))[:40] if isinstance(files, dict) else None,
)
def test_a_dependency_in_the_projects_own_folder_makes_every_file_part_of_the_environment(files):
    assert "lib/foo/anything.py" in spec_of({**files, "lib/foo/anything.py": ""}).files


@pytest.mark.parametrize(
    "line", ["six", "six[x]==1 ; python_version > '3'", "git+https://h/x.git", "x @ https://h/x.whl", "-i https://h/"]
)
def test_a_dependency_from_elsewhere_leaves_the_sources_out_of_the_environment(line):
    assert set(spec_of({"requirements.txt": f"{line}\n", "main.py": ""}).files) == {"requirements.txt"}


@pytest.mark.parametrize(
    ("files", "installed"),
    [
        ({"pyproject.toml": PROJECT + BUILD}, True),
        ({"pyproject.toml": PROJECT}, False),
        ({"pyproject.toml": PROJECT + BUILD + "[tool.uv]\npackage = false\n", "uv.lock": UV_LOCK}, False),
        ({"pyproject.toml": PROJECT + BUILD, "uv.lock": UV_LOCK}, True),
        ({"pyproject.toml": POETRY + BUILD, "poetry.lock": OTHER_LOCK}, True),
        (
            {
                "pyproject.toml": POETRY.replace('name = "app"', "package-mode = false") + BUILD,
                "poetry.lock": OTHER_LOCK,
            },
            False,
        ),
        ({"pyproject.toml": PROJECT + BUILD + "[tool.pdm]\ndistribution = false\n", "pdm.lock": OTHER_LOCK}, False),
        ({"pyproject.toml": PROJECT + BUILD, "requirements.txt": "six"}, False),
        ({"pyproject.toml": PROJECT + BUILD, "requirements.txt": "six", "src/app/__init__.py": ""}, True),
        ({"pyproject.toml": PROJECT + BUILD, "requirements.txt": "-e .", "src/app/__init__.py": ""}, False),
        ({"setup.py": "setup()"}, True),
        ({"main.py": ""}, False),
    ],
)
def test_the_project_itself_is_installed_over_its_environment_only_when_it_is_a_package(files, installed):
    plan = plan_of(files)
    commands = STACK.install(plan, FileTree.of(plan), LAYOUT)
    own = ["/t/uv pip install --python .venv/bin/python --no-deps -e ."]
    assert [command.display for command in commands] == (own if installed else [])


# --- which manifest decides


@pytest.mark.parametrize(
    ("files", "manager", "warning"),
    [
        ({"pyproject.toml": PROJECT, "uv.lock": UV_LOCK, "requirements.txt": "x"}, "uv", "uv.lock decides"),
        ({"pyproject.toml": POETRY, "poetry.lock": OTHER_LOCK, "uv.lock": UV_LOCK}, "poetry", "poetry.lock decides"),
        ({"pyproject.toml": PROJECT, "pdm.lock": OTHER_LOCK, "uv.lock": UV_LOCK}, "uv", "uv.lock decides"),
        ({"uv.lock": UV_LOCK, "requirements.txt": "six"}, "requirements", "of no use without pyproject.toml"),
        ({"Pipfile.lock": PIPFILE_LOCK, "main.py": ""}, "none", "of no use without Pipfile"),
        ({"requirements.txt": "idna", "Pipfile": PIPFILE}, "requirements", "Pipfile, which has no lock, ignored"),
        ({"requirements.txt": "idna", "pyproject.toml": PROJECT}, "requirements", "six of pyproject.toml is not in it"),
        ({"pyproject.toml": "[project\n", "requirements.txt": "six"}, "requirements", "not valid TOML"),
    ],
)
def test_what_is_passed_over_is_said(files, manager, warning):
    assert spec_of(files).manager == manager
    assert warning in warnings_of(files)


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "uv.lock", "poetry.lock", "pdm.lock", "Pipfile", "Pipfile.lock", "requirements.txt"]
)
@pytest.mark.parametrize(
    "content",
    ["[project\n", "\0\x01", '"', "[" * 3000, "a = [1, 2", '{"default": 3}', "[tool]\npoetry = 1\nuv = []\npdm = ''"],
)
def test_a_broken_manifest_never_breaks_the_planner(name, content):
    files = {"pyproject.toml": PROJECT, "Pipfile": PIPFILE, "main.py": "", name: content}
    plan = plan_of(files)
    tree = FileTree.of(plan)
    assert STACK.detect(tree) is not None
    assert STACK.choose_runtime(plan, tree, [PYTHON]).runtime == PYTHON
    spec = spec_of(files)
    assert spec.commands[0].display.endswith(VENV.removeprefix("uv "))
    assert STACK.run(plan, tree, LAYOUT).command is not None
    assert "exec" in STACK.run_script(plan, tree, "python main.py", "")


# --- what a build's commands see


def test_the_environment_is_active_and_the_host_is_not_there():
    env = STACK.command_env(LAYOUT)
    assert env["PATH"].split(":")[0] == "/workspace/.venv/bin"
    assert env["VIRTUAL_ENV"] == "/workspace/.venv"
    assert env["PYTHONDONTWRITEBYTECODE"] == "1"
    assert env["PYTHONUNBUFFERED"] == "1"
    assert not {"HOME", "PYTHONPATH", "PYTHONPYCACHEPREFIX"} & set(env)


def test_every_pinned_file_that_holds_json_is_read_tolerantly():
    files = {"Pipfile": PIPFILE, "Pipfile.lock": json.dumps({"default": {"six": "not a table"}})}
    assert spec_of(files).manager == "pipenv"
