"""The Python stack: uv, poetry, pdm, pipenv, requirements.txt, a bare pyproject.toml, setup.py, or nothing at all.

The environment is `.venv` with the dependencies alone; the project itself, when it is a package, is put over it for
each build (`install`), so that a changed source file never makes a new environment.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace

from shared.errors import FarmError
from shared.plan import Plan
from shared.stacks import python_manifests, python_runtime, python_script, python_sources, python_start
from shared.stacks.base import (
    Command,
    EnvironmentSpec,
    Evidence,
    FileTree,
    Layout,
    RunChoice,
    Runtime,
    RuntimeChoice,
    Tool,
)
from shared.stacks.python_constraints import poetry_requirements
from shared.stacks.python_manifests import Manifests, table
from shared.stacks.python_requirements import is_local

VENV = ".venv"
_PYTHON = f"{VENV}/bin/python"
_OURS = ".orchestrator"
_UNLOCKED = f"{_OURS}/unlocked.txt"
_EXPORTED = f"{_OURS}/exported.txt"

# Build backends that compile with CMake, cargo or meson: their manifests at the root belong to the Python package.
_NATIVE_BACKENDS = ("scikit_build_core", "skbuild", "maturin", "setuptools_rust", "mesonpy", "py_build_cmake", "cmeel")

# The tools' versions, by the oldest Python each runs on: an old interpreter gets the last release that knows it.
_TOOLS: Mapping[str, tuple[tuple[tuple[int, int], tuple[str, ...]], ...]] = {
    "poetry": (
        ((3, 10), ("poetry==2.5.1", "poetry-plugin-export==1.10.0")),
        ((3, 9), ("poetry==2.2.1", "poetry-plugin-export==1.9.0")),
        ((3, 8), ("poetry==1.8.5", "poetry-plugin-export==1.8.0")),
    ),
    # The extra is pdm's own set of pinned dependencies: newer ones of hishel break it.
    "pdm": (
        ((3, 10), ("pdm[locked]==2.29.3",)),
        ((3, 9), ("pdm[locked]==2.26.9",)),
        ((3, 8), ("pdm[locked]==2.20.1",)),
    ),
    "pipenv": (
        ((3, 10), ("pipenv==2026.10.3",)),
        ((3, 9), ("pipenv==2025.0.4",)),
        ((3, 8), ("pipenv==2024.4.1",)),
    ),
}


class PythonStack:
    """Python projects. Satisfies `Stack`."""

    NAME = "python"
    MANIFESTS: tuple[str, ...] = (
        "uv.lock",
        "poetry.lock",
        "pdm.lock",
        "Pipfile.lock",
        "Pipfile",
        "requirements.txt",
        "pyproject.toml",
        "setup.py",
        "setup.cfg",
    )
    RUN_WORDS: tuple[str, ...] = (
        "python",
        "python3",
        "uv",
        "uvx",
        "pip",
        "poetry",
        "pdm",
        "pipenv",
        "uvicorn",
        "gunicorn",
        "hypercorn",
        "flask",
        "quart",
        "fastapi",
        "django-admin",
        "streamlit",
        "pytest",
        "celery",
        "ipython",
        "jupyter",
    )

    def detect(self, files: FileTree) -> Evidence | None:
        """Whether these files are Python's. Strength 4: a package that builds CMake's or cargo's project itself."""
        manifests = python_manifests.read(files)
        found = next((path for path in self.MANIFESTS if path in files and self._identifies(path, files)), None)
        sources = python_sources.has_sources(files)
        if found:
            backend = str(table(manifests.pyproject, "build-system").get("build-backend", ""))
            if backend.partition(".")[0] in _NATIVE_BACKENDS:
                reason = f"pyproject.toml, whose build backend is {backend}"
                return Evidence(self.NAME, manifests.manager, reason, 4, manifests.warnings)
            return Evidence(self.NAME, manifests.manager, manifests.reason, 3, manifests.warnings)
        if sources:
            return Evidence(self.NAME, manifests.manager, f"Python sources ({sources})", 2, manifests.warnings)
        if "pyproject.toml" in files:
            return Evidence(
                self.NAME, manifests.manager, "pyproject.toml, of tool settings only", 1, manifests.warnings
            )
        return None

    def _identifies(self, manifest: str, files: FileTree) -> bool:
        """pyproject.toml and setup.cfg are also where tools keep their settings, in projects of any language."""
        if manifest == "pyproject.toml":
            pyproject, fault = python_manifests.read_toml(files, manifest)
            return bool(fault) or python_manifests.declares_project(pyproject)
        return manifest != "setup.cfg" or python_manifests.is_setup(files)

    def probe(self) -> Sequence[Command]:
        return (Command(argv=("uv", "--version")), Command(argv=("python3", "--version")))

    def choose_runtime(self, plan: Plan, files: FileTree, present: Sequence[Runtime]) -> RuntimeChoice:  # noqa: ARG002
        """By .python-version, .tool-versions, runtime.txt and Pipfile, within requires-python and Poetry's range."""
        return python_runtime.choose(files, present)

    def environment(self, plan: Plan, files: FileTree, layout: Layout) -> EnvironmentSpec:
        """The virtual environment of the project's dependencies. Raises `FarmError` when no runtime was chosen."""
        runtime = _runtime(layout)
        manifests = python_manifests.read(files)
        paths = tuple(files) if _sees_everything(plan, manifests) else manifests.inputs
        inputs = {path: files.bytes(path) for path in paths}
        commands = [_uv(layout, "venv", VENV, "--python", runtime.path, "--no-project", network=False, refresh=False)]
        tools: tuple[Tool, ...] = ()
        if manifests.manager in _TOOLS:
            tools = (_tool(manifests.manager, layout),)
        if manifests.manager == "poetry" or _poetry_unlocked(manifests):
            lines = poetry_requirements(table(manifests.pyproject, "tool", "poetry", "dependencies"))
            lines += python_manifests.project_dependencies(manifests.pyproject)
            inputs[_UNLOCKED] = "".join(f"{line}\n" for line in lines).encode()
        commands += _dependencies(plan, manifests, layout, tools)
        commands.append(_seed_pip(layout))
        return EnvironmentSpec(
            stack=self.NAME,
            manager=manifests.manager,
            runtime=f"python-{runtime.version}",
            files=inputs,
            commands=tuple(commands),
            paths=(VENV,),
            tools=tools,
            freeze=_uv(
                layout,
                "pip",
                "freeze",
                "--python",
                _PYTHON,
                "--exclude-editable",
                "--exclude",
                "pip",
                network=False,
                refresh=False,
            ),
            reason=manifests.reason,
        )

    def install(self, plan: Plan, files: FileTree, layout: Layout) -> Sequence[Command]:  # noqa: ARG002
        """The project itself, in place, when it is a package. Its build backend comes from the registry."""
        if not python_manifests.read(files).package:
            return ()
        return (_uv(layout, "pip", "install", "--python", _PYTHON, "--no-deps", "-e", "."),)

    def build(self, plan: Plan, files: FileTree, layout: Layout) -> Sequence[Command]:  # noqa: ARG002
        return ()

    def run(self, plan: Plan, files: FileTree, layout: Layout) -> RunChoice:  # noqa: ARG002
        """How the project is started: see `python_start.choose`."""
        return python_start.choose(plan, files, python_manifests.read(files))

    def command_env(self, layout: Layout) -> Mapping[str, str]:
        """The virtual environment active, uv told to stay within it, and nothing of the host.

        Bytecode is not written: the environment's is compiled already, and the project's would be delivered with it.
        (A cache prefix would hide what is compiled.)
        """
        venv = f"{layout.workspace}/{VENV}"
        return {
            "PATH": f"{venv}/bin:{posixpath.dirname(layout.uv)}:/usr/local/bin:/usr/bin:/bin",
            "VIRTUAL_ENV": venv,
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_CACHE_DIR": f"{layout.cache}/pip",
            "UV_NO_SYNC": "1",  # `uv run` then runs in the environment as it is, and needs no network
            **_uv_env(layout),
        }

    def run_script(self, plan: Plan, files: FileTree, command: str, pins: str, runtime: Runtime | None = None) -> str:
        """A POSIX shell script that needs nothing but Python with venv: see `python_script.text`."""
        return python_script.text(plan, files, python_manifests.read(files), runtime, command, pins)


def _runtime(layout: Layout) -> Runtime:
    if layout.runtime is None:
        raise FarmError("a Python environment was asked for, but no interpreter was chosen for it")
    return layout.runtime


def _sees_everything(plan: Plan, manifests: Manifests) -> bool:
    return manifests.local or any(is_local(dependency) for dependency in plan.deps)


def _poetry_unlocked(manifests: Manifests) -> bool:
    """A Poetry project without a lock, whose dependencies are only in Poetry's own table."""
    poetry = table(manifests.pyproject, "tool", "poetry", "dependencies")
    declared = "dependencies" in table(manifests.pyproject, "project")
    return manifests.manager == "pyproject" and bool(poetry) and not declared


def _uv_env(layout: Layout) -> dict[str, str]:
    return {
        "UV_CACHE_DIR": f"{layout.cache}/uv",
        "UV_LINK_MODE": "copy",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }


def _uv(layout: Layout, *arguments: str, network: bool = True, refresh: bool = True) -> Command:
    return Command(
        argv=(layout.uv, *arguments),
        env=_uv_env(layout),
        network=network,
        retry_on_corrupt_cache=("--refresh",) if refresh else (),
    )


def _pip_install(layout: Layout, *wanted: str) -> Command:
    return _uv(layout, "pip", "install", "--python", _PYTHON, "--compile-bytecode", *wanted)


def _seed_pip(layout: Layout) -> Command:
    """pip, which people's own commands expect to be there. Last, for managers remove what they did not install.

    Not `uv venv --seed`: that brings packages along whose absence a project should notice. A project without
    dependencies has to build without a registry, so there is another way, and no waiting for retries.
    """
    command = _uv(layout, "pip", "install", "--python", _PYTHON, "pip")
    return replace(
        command,
        env={**command.env, "UV_HTTP_RETRIES": "0"},
        fallback=Command(argv=("sh", "-c", f"{_PYTHON} -m ensurepip --default-pip || true")),
        fallback_note="pip could not be fetched from the registry; the interpreter's own is used, if it has one",
    )


def _tool(name: str, layout: Layout) -> Tool:
    """A manager at its pinned version. Each interpreter has its own, for a build sees no other interpreter's folder."""
    runtime = _runtime(layout)
    releases = _TOOLS[name]
    packages = next((pins for oldest, pins in releases if python_runtime.minor(runtime) >= oldest), releases[-1][1])
    version = packages[0].partition("==")[2]
    interpreter = hashlib.sha256(f"{runtime.path} {runtime.version}".encode()).hexdigest()[:8]
    home = f"{layout.tool_root}/{name}-{version}-{interpreter}"
    install = (
        _uv(
            layout,
            "venv",
            home,
            "--python",
            runtime.path,
            "--no-project",
            "--relocatable",
            network=False,
            refresh=False,
        ),
        _uv(layout, "pip", "install", "--python", f"{home}/bin/python", "--compile-bytecode", *packages),
    )
    return Tool(name=name, version=version, executable=f"bin/{name}", install=install, home=home)


def _dependencies(plan: Plan, manifests: Manifests, layout: Layout, tools: Sequence[Tool]) -> list[Command]:
    """The commands that fill a new virtual environment."""
    extra = plan.deps
    commands: list[Command] = []
    match manifests.manager:
        case "uv":
            commands.append(_uv_sync(manifests, layout))
        case "poetry":
            commands += _poetry(layout, tools[0])
        case "pdm":
            commands += _pdm(manifests, layout, tools[0])
        case "pipenv":
            commands.append(_pipenv(manifests, layout, tools[0]))
        case "requirements" | "pyproject" | "setup" | "none":
            # Nothing is locked, so that one resolution can do justice to the manifest and to the plan's deps.
            manifest = (
                _UNLOCKED
                if _poetry_unlocked(manifests)
                else {"requirements": "requirements.txt"}.get(
                    manifests.manager, manifests.inputs[0] if manifests.inputs else ""
                )
            )
            wanted = (*(("-r", manifest) if manifests.manager != "none" else ()), *extra)
            return [_pip_install(layout, *wanted)] if wanted else []
    if extra:
        commands.append(_pip_install(layout, *extra))
    return commands


def _uv_sync(manifests: Manifests, layout: Layout) -> Command:
    frozen = () if manifests.missing else ("--frozen",)
    return _uv(
        layout,
        "sync",
        *frozen,
        "--no-dev",
        "--no-install-project",
        "--compile-bytecode",
        "--python",
        _runtime(layout).path,
    )


def _poetry(layout: Layout, tool: Tool) -> list[Command]:
    """Poetry says what its lock holds and uv installs that, with the lock's hashes.

    Poetry's own installer needs PyPI's JSON interface, which mirrors rarely have, and its cache is no good to two
    builds at once. It refuses a lock that does not fit pyproject.toml: then that is resolved anew.
    """
    env = {
        "POETRY_CACHE_DIR": "/tmp/poetry/cache",  # noqa: S108 - the build's own /tmp
        "POETRY_CONFIG_DIR": "/tmp/poetry/config",  # noqa: S108
        "POETRY_DATA_DIR": "/tmp/poetry/data",  # noqa: S108
        "POETRY_KEYRING_ENABLED": "false",
        "POETRY_NO_INTERACTION": "1",
        "POETRY_VIRTUALENVS_IN_PROJECT": "true",
    }
    export = Command(
        argv=(tool.path, "export", "--only", "main", "--format", "requirements.txt", "--output", _EXPORTED),
        env=env,
        fallback=Command(argv=("cp", _UNLOCKED, _EXPORTED)),
        fallback_note="poetry.lock cannot be used with this pyproject.toml; the dependencies were resolved without it",
    )
    return [export, _pip_install(layout, "-r", _EXPORTED)]


def _pdm(manifests: Manifests, layout: Layout, tool: Tool) -> list[Command]:
    env = {
        "PDM_CACHE_DIR": "/tmp/pdm/cache",  # noqa: S108 - an SQLite file that is not meant for two machines' writers
        "PDM_CHECK_UPDATE": "0",
        "PDM_IGNORE_ACTIVE_VENV": "1",
        "PDM_NON_INTERACTIVE": "1",
        "PDM_PYTHON": f"{layout.workspace}/{_PYTHON}",
    }
    verb = "install" if manifests.missing else "sync"
    return [
        Command(argv=(tool.path, verb, "--prod", "--no-self"), env=env, network=True),
        # pdm does not compile. A file of a package that is no valid Python is no fault of the build's.
        Command(argv=("sh", "-c", f"{_PYTHON} -m compileall -q {VENV}/lib || true")),
    ]


def _pipenv(manifests: Manifests, layout: Layout, tool: Tool) -> Command:
    env = {
        "PIPENV_CACHE_DIR": "/tmp/pipenv/cache",  # noqa: S108 - the build's own /tmp
        "PIPENV_IGNORE_VIRTUALENVS": "1",
        "PIPENV_NOSPIN": "1",
        "PIPENV_VENV_IN_PROJECT": "1",
        "PIPENV_YES": "1",
        "PIP_CACHE_DIR": f"{layout.cache}/pip",
    }
    locked = "Pipfile.lock" in manifests.inputs
    verb = ("install", "--skip-lock") if not locked else ("install",) if manifests.missing else ("sync",)
    return Command(argv=(tool.path, *verb), env=env, network=True)
