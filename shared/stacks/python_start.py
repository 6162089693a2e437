"""How a Python project is started: what its plan says, or what its files show.

The order is STACKS.md's. Whatever is inferred is there: a script's module is one of the project's files, a server is
among the dependencies. A guess that would only fail at run time is no start.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from shared.plan import Plan
from shared.stacks import python_sources
from shared.stacks.base import Command, FileTree, RunChoice
from shared.stacks.python_manifests import Manifests, table
from shared.stacks.python_requirements import names_of
from shared.stacks.python_sources import App

DEFAULT_PORT = 8000
_PLAN = "the plan's run"
_MAIN_FILES = ("main.py", "app.py", "server.py", "bot.py", "start.py", "run.py", "__main__.py")

# The environment is active already, and the manager is not there when the project runs.
_RUNNER = re.compile(r"^(uv|poetry|pdm|pipenv)\s+run\s+(?=[^-\s])")


def choose(plan: Plan, files: FileTree, manifests: Manifests) -> RunChoice:
    """The command that starts the project; none for a library, with the reason."""
    if plan.run.strip():
        return _given(plan.run.strip(), manifests)
    warnings: list[str] = []
    finders: tuple[Callable[[Plan, FileTree, Manifests, list[str]], tuple[str, str] | None], ...] = (
        _procfile,
        _project_script,
        _django,
        _web_app,
        _main_file,
        _main_module,
        _only_guard,
        _only_file,
    )
    for find in finders:
        found = find(plan, files, manifests, warnings)
        if found:
            return RunChoice(Command(shell=found[0]), found[1], tuple(warnings))
    return RunChoice(None, "nothing in the project is there to be started; give `run` if something is", tuple(warnings))


def _given(run: str, manifests: Manifests) -> RunChoice:
    """The plan's own command, freed of a manager's `run` where that does nothing but activate the environment."""
    match = _RUNNER.match(run)
    if not match:
        return RunChoice(Command(shell=run), _PLAN)
    rest = run[match.end() :]
    first = rest.split()[0]
    if first in table(manifests.pyproject, "tool", "pdm", "scripts") or first in manifests.pipfile_scripts:
        return RunChoice(Command(shell=run), _PLAN)
    if first.endswith(".py"):
        rest = f"python {rest}"
    reason = f"{_PLAN}, without `{match[0].strip()}`: its environment is active already"
    return RunChoice(Command(shell=rest), reason)


def _procfile(plan: Plan, files: FileTree, manifests: Manifests, warnings: list[str]) -> tuple[str, str] | None:  # noqa: ARG001
    processes = dict(re.findall(r"(?m)^([A-Za-z0-9_-]+):[ \t]*(\S.*)$", files.text("Procfile")))
    processes.pop("release", None)  # a step before deployment, not a process
    for name in ("web", "worker", *sorted(processes)):
        if name in processes:
            command = processes[name].strip()
            if re.search(r"\$\{?PORT\b", command):
                command = f'export PORT="${{PORT:-{_port(plan)}}}"; {command}'
            return command, f"{name} in the Procfile"
    return None


def _project_script(plan: Plan, files: FileTree, manifests: Manifests, warnings: list[str]) -> tuple[str, str] | None:  # noqa: ARG001
    poetry = table(manifests.pyproject, "tool", "poetry", "scripts")
    scripts = {**poetry, **table(manifests.pyproject, "project", "scripts")}
    if not scripts:
        return None
    if not manifests.package:
        warnings.append("[project.scripts] are not used: the project is not installed, for it has no [build-system]")
        return None
    if len(scripts) > 1:
        several = ", ".join(sorted(scripts))
        warnings.append(f"[project.scripts] has several ({several}); give `run` to say which starts the project")
        return None
    name, entry = next(iter(scripts.items()))
    module = str(entry).partition(":")[0].strip()
    if not python_sources.module_exists(files, module):
        warnings.append(f"the script {name!r} is of the module {module!r}, which is not in the project")
        return None
    return shlex.quote(name), f"{name}, the only one of [project.scripts]"


def _django(plan: Plan, files: FileTree, manifests: Manifests, warnings: list[str]) -> tuple[str, str] | None:  # noqa: ARG001
    if "manage.py" not in files or "django" not in files.text("manage.py"):
        return None
    return f"python manage.py runserver 0.0.0.0:{_port(plan)}", "Django's manage.py"


def _web_app(plan: Plan, files: FileTree, manifests: Manifests, warnings: list[str]) -> tuple[str, str] | None:
    asked = manifests.names | names_of(plan.deps)
    for app in python_sources.apps(files):
        command = _served(app, _port(plan), asked)
        if not command:
            warnings.append(f"{app.target} is a {app.kind} application, but no server for it is among the dependencies")
            continue
        if app.root and not (app.root == "src" and manifests.package):
            command = f"PYTHONPATH={shlex.quote(app.root)} {command}"
        factory = ", made by a function" if app.factory else ""
        return command, f"the {app.kind} application {app.target} in {app.path}{factory}"
    return None


def _served(app: App, port: int, asked: frozenset[str]) -> str:
    """The command that serves an application with what is installed; empty when nothing can."""
    if app.kind == "Flask":
        if "gunicorn" in asked:
            target = f"'{app.target}()'" if app.factory else app.target
            return f"gunicorn {target} --bind 0.0.0.0:{port}"
        return f"flask --app {app.target} run --host 0.0.0.0 --port {port}" if "flask" in asked else ""
    extras = {"fastapi[standard]", "fastapi[all]", "uvicorn"}
    if extras & asked:
        factory = " --factory" if app.factory else ""
        return f"uvicorn {app.target}{factory} --host 0.0.0.0 --port {port}"
    if ("hypercorn" in asked or (app.kind == "Quart" and "quart" in asked)) and not app.factory:
        return f"hypercorn {app.target} --bind 0.0.0.0:{port}"  # Quart depends on hypercorn
    return ""


def _main_file(plan: Plan, files: FileTree, manifests: Manifests, warnings: list[str]) -> tuple[str, str] | None:  # noqa: ARG001
    for folder in ("", "src/"):
        for name in _MAIN_FILES:
            if f"{folder}{name}" in files:
                return f"python {folder}{name}", f"{folder}{name}"
    return None


def _main_module(plan: Plan, files: FileTree, manifests: Manifests, warnings: list[str]) -> tuple[str, str] | None:  # noqa: ARG001
    found = [path for path in python_sources.sources(files) if re.fullmatch(r"(src/)?[A-Za-z_]\w*/__main__\.py", path)]
    if len(found) > 1:
        warnings.append(f"which of {', '.join(found)} starts the project is not said; give `run`")
    if len(found) != 1:
        return None
    return _module_command(files, manifests, found[0].removesuffix("/__main__.py"), found[0]), found[0]


def _only_guard(plan: Plan, files: FileTree, manifests: Manifests, warnings: list[str]) -> tuple[str, str] | None:  # noqa: ARG001
    guarded = [path for path in python_sources.sources(files) if python_sources.is_guarded(files, path)]
    if len(guarded) > 1:
        shown = ", ".join(guarded[:5])
        warnings.append(f"several files have a __main__ guard ({shown}); give `run` to say which starts the project")
    if len(guarded) != 1:
        return None
    path = guarded[0]
    reason = f"{path}, the only file with a __main__ guard"
    if f"{path.rpartition('/')[0]}/__init__.py" in files:
        return _module_command(files, manifests, path.removesuffix(".py"), path), reason
    return f"python {shlex.quote(path)}", reason


def _only_file(plan: Plan, files: FileTree, manifests: Manifests, warnings: list[str]) -> tuple[str, str] | None:  # noqa: ARG001
    found = python_sources.sources(files)
    if len(found) != 1 or "/" in found[0] or not python_sources.does_something(files, found[0]):
        return None
    return f"python {shlex.quote(found[0])}", f"{found[0]}, the only Python file"


def _module_command(files: FileTree, manifests: Manifests, path: str, file: str) -> str:
    """`python -m` for a module, found where it lies when the project is not installed."""
    root = python_sources.place(files, file)[0]
    module = path[len(root) + 1 :] if root and path.startswith(f"{root}/") else path
    prefix = "" if not root or (root == "src" and manifests.package) else f"PYTHONPATH={shlex.quote(root)} "
    return f"{prefix}python -m {shlex.quote(module.replace('/', '.'))}"


def _port(plan: Plan) -> int:
    return plan.service.port if plan.service and plan.service.port else DEFAULT_PORT
