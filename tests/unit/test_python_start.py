"""How a Python project's start is found, and the run.sh that starts it anywhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shared.plan import Plan
from shared.stacks import STACKS
from shared.stacks.base import FileTree, Layout, RunChoice, Runtime

STACK = STACKS["python"]
PYTHON = Runtime("python", "3.11.7", "/py/bin/python3.11", "/py")
LAYOUT = Layout(runtime=PYTHON)

PROJECT = '[project]\nname = "app"\nversion = "1"\ndependencies = ["six"]\n'
BUILD = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'


def plan_of(files: dict[str, str] | None = None, **fields: object) -> Plan:
    entries = [{"filename": path, "code": text} for path, text in (files or {}).items()]
    return Plan.parse({"name": "app", "files": entries or [{"filename": "notes.txt", "code": ""}], **fields})


FASTAPI = "from fastapi import FastAPI\napp = FastAPI()\n"
FLASK = "import flask\nsite = flask.Flask(__name__)\n"
GUARD = 'def main(): ...\nif __name__ == "__main__":\n    main()\n'


def start(files: dict[str, str], **fields: object) -> RunChoice:
    plan = plan_of(files, **fields)
    return STACK.run(plan, FileTree.of(plan), LAYOUT)


SCRIPTED = PROJECT + '[project.scripts]\nserve = "app.cli:main"\n'


@pytest.mark.parametrize(
    ("files", "command", "reason"),
    [
        ({"Procfile": "release: x\nworker: w\nweb: gunicorn a:b -b :$PORT\n", "main.py": ""},
         'export PORT="${PORT:-8000}"; gunicorn a:b -b :$PORT', "web in the Procfile"),
        ({"Procfile": "zeta: z\nalpha: python a.py  \n"}, "python a.py", "alpha in the Procfile"),
        ({"pyproject.toml": SCRIPTED + BUILD, "app/cli.py": "", "main.py": ""}, "serve", "the only one"),
        ({"pyproject.toml": SCRIPTED + BUILD, "src/app/cli/__init__.py": ""}, "serve", "the only one"),
        ({"manage.py": "import django", "main.py": ""}, "python manage.py runserver 0.0.0.0:8000", "Django"),
        ({"requirements.txt": "fastapi\nuvicorn[standard]", "main.py": FASTAPI},
         "uvicorn main:app --host 0.0.0.0 --port 8000", "FastAPI application main:app in main.py"),
        ({"requirements.txt": "fastapi[standard]", "web/__init__.py": "", "web/server.py": FASTAPI, "main.py": "1"},
         "uvicorn web.server:app --host 0.0.0.0 --port 8000", "web/server.py"),
        ({"requirements.txt": "fastapi\nuvicorn", "src/web/__init__.py": "", "src/web/api.py": FASTAPI},
         "PYTHONPATH=src uvicorn web.api:app --host 0.0.0.0 --port 8000", "src/web/api.py"),
        ({"pyproject.toml": PROJECT.replace("six", "fastapi[all]") + BUILD,
          "src/web/__init__.py": "", "src/web/api.py": FASTAPI},
         "uvicorn web.api:app --host 0.0.0.0 --port 8000", "src/web/api.py"),
        ({"requirements.txt": "fastapi\nuvicorn", "backend/db.py": "", "backend/main.py": "import db\n" + FASTAPI},
         "PYTHONPATH=backend uvicorn main:app --host 0.0.0.0 --port 8000", "backend/main.py"),
        ({"requirements.txt": "flask", "app.py": FLASK},
         "flask --app app:site run --host 0.0.0.0 --port 8000", "Flask"),
        ({"requirements.txt": "Flask\ngunicorn", "app.py": FLASK}, "gunicorn app:site --bind 0.0.0.0:8000", "Flask"),
        ({"requirements.txt": "flask",
          "web/__init__.py": "from flask import Flask\ndef create_app(x=1):\n  return Flask('w')\n"},
         "flask --app web:create_app run --host 0.0.0.0 --port 8000", "made by a function"),
        ({"requirements.txt": "quart", "app.py": "from quart import Quart as Q\nx: Q = Q('a')"},
         "hypercorn app:x --bind 0.0.0.0:8000", "Quart"),
        ({"server.py": "", "main.py": ""}, "python main.py", "main.py"),
        ({"bot.py": "", "helper.py": ""}, "python bot.py", "bot.py"),
        ({"src/main.py": ""}, "python src/main.py", "src/main.py"),
        ({"pkg/__init__.py": "", "pkg/__main__.py": ""}, "python -m pkg", "pkg/__main__.py"),
        ({"src/pkg/__init__.py": "", "src/pkg/__main__.py": ""}, "PYTHONPATH=src python -m pkg", "src/pkg/__main__.py"),
        ({"pyproject.toml": PROJECT + BUILD, "src/pkg/__main__.py": ""}, "python -m pkg", "src/pkg/__main__.py"),
        ({"a.py": "", "b.py": GUARD, "tests/test_x.py": GUARD, "setup.py": GUARD}, "python b.py", "the only file with"),
        ({"p/__init__.py": "", "p/b.py": GUARD, "c.py": ""}, "python -m p.b", "the only file with"),
        ({"my prog.py": GUARD, "c.py": ""}, "python 'my prog.py'", "the only file with"),
        ({"hello.py": "print('hi')"}, "python hello.py", "the only Python file"),
        ({"hello.py": "print('hi'"}, "python hello.py", "the only Python file"),
    ],
)  # fmt: skip
def test_the_start_is_found_in_the_order_of_precedence(files, command, reason):
    choice = start(files)
    assert choice.command is not None
    assert choice.command.shell == command
    assert reason in choice.reason


@pytest.mark.parametrize(
    "files",
    [
        {"pkg/__init__.py": "", "pkg/core.py": "def f(): ..."},
        {"lib.py": '"""Doc."""\nimport os\nX = 1\ndef f(): ...\n'},
        {"a.py": GUARD, "b.py": GUARD},
        {"pyproject.toml": SCRIPTED + BUILD, "other/cli.py": "", "other/__init__.py": ""},
        {"requirements.txt": "fastapi", "web/api.py": FASTAPI, "x.py": ""},
        {"one/__main__.py": "", "two/__main__.py": ""},
        {"api.py": "# FastAPI()\ndef f():\n    app = FastAPI()\n", "b.py": ""},
    ],
)
def test_a_library_and_an_ambiguity_are_not_started(files):
    choice = start(files)
    assert choice.command is None
    assert choice.reason


@pytest.mark.parametrize(
    ("files", "warning"),
    [
        ({"pyproject.toml": SCRIPTED + BUILD, "main.py": ""}, "'app.cli', which is not in the project"),
        ({"pyproject.toml": SCRIPTED, "app/cli.py": "", "main.py": ""}, "is not installed"),
        (
            {"pyproject.toml": SCRIPTED + 'b = "app.cli:b"\n' + BUILD, "app/cli.py": "", "main.py": ""},
            "several (b, serve)",
        ),
        ({"requirements.txt": "fastapi", "main.py": FASTAPI}, "no server for it"),
    ],
)
def test_a_start_that_is_not_there_is_passed_over_with_a_warning(files, warning):
    choice = start(files)
    assert choice.command is not None
    assert choice.command.shell == "python main.py"
    assert warning in "\n".join(choice.warnings)


def test_the_port_of_the_service_is_the_one_served_on():
    choice = start({"requirements.txt": "fastapi\nuvicorn", "main.py": FASTAPI}, service={"port": 5001})
    assert choice.command is not None
    assert choice.command.shell.endswith("--port 5001")


@pytest.mark.parametrize(
    ("run", "command"),
    [
        ("python x.py && echo done", "python x.py && echo done"),
        ("poetry run uvicorn a:b", "uvicorn a:b"),
        ("uv run main.py --fast", "python main.py --fast"),
        ("uv run --with x main.py", "uv run --with x main.py"),
        ("pdm run serve", "pdm run serve"),
    ],
)
def test_the_plans_run_is_kept_but_for_a_managers_run(run, command):
    files = {"main.py": "", "pyproject.toml": PROJECT + '[tool.pdm.scripts]\nserve = "x"\n'}
    choice = start(files, run=run)
    assert choice.command is not None
    assert choice.command.shell == command


# --- run.sh


def script(files: dict[str, str], command: str = "python main.py", pins: str = "", **fields: object) -> str:
    plan = plan_of(files, **fields)
    return STACK.run_script(plan, FileTree.of(plan), command, pins, PYTHON)


def test_run_sh_prefers_the_interpreter_it_was_built_with_and_installs_the_pins_without_resolving():
    text = script({"requirements.txt": "--extra-index-url https://h.example/simple\nsix"}, pins="six==1\n")
    assert "for candidate in python3.11 python3 python;" in text
    assert '--no-deps --extra-index-url https://h.example/simple -r "$pins"' in text
    assert "-e ." not in text


def test_run_sh_installs_the_project_and_the_folders_it_installs_in_place():
    assert "-e . >&2" in script({"pyproject.toml": PROJECT + BUILD})
    text = script({"requirements.txt": "-e ./my lib\n-e .\n"})
    assert "-e './my lib' >&2" in text
    assert "-e . >&2" in text


def test_run_sh_finds_packages_of_the_project_where_it_is_now():
    assert "file:///workspace" in script({"main.py": ""}, pins="foo @ file:///workspace/lib/foo\n")
    assert "file:///workspace" not in script({"main.py": ""}, pins="foo==1\n")


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell script")
def test_run_sh_runs_from_any_folder_twice_with_every_text_quoted(tmp_path):
    project = tmp_path / "it's a $(touch pwned) project"
    project.mkdir()
    secret = 'it\'s "$HOME" `touch pwned` \\ end'
    (project / "run.sh").write_text(
        script(
            {"main.py": ""},
            command='printf \'%s|\' "$VALUE" "$(basename "$VIRTUAL_ENV")"; python -c \'import sys; sys.exit(7)\'',
            env={"VALUE": secret},
            post_install=["echo installed >> 'it took'"],
        )
    )
    env = {"PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    for _ in range(2):
        done = subprocess.run(
            ["sh", str(project / "run.sh")], cwd="/", env=env, capture_output=True, text=True, check=False
        )
        assert done.stdout == f"{secret}|.venv|", done.stderr
        assert done.returncode == 7
    assert (project / "it took").read_text() == "installed\n"
    assert not list(tmp_path.rglob("pwned"))
    moved = project.rename(tmp_path / "moved")
    subprocess.run(["sh", str(moved / "run.sh")], cwd="/", env=env, capture_output=True, check=False)
    assert (moved / "it took").read_text() == "installed\ninstalled\n"  # a virtual environment does not survive a move


def test_run_sh_of_a_library_installs_and_says_that_there_is_nothing_to_start():
    text = script({"lib.py": ""}, command="")
    assert "nothing to start" in text
    assert "exec" not in text
