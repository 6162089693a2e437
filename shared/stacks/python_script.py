"""`run.sh` of a Python project: what a person types on a machine that has Python and nothing of ours."""

from __future__ import annotations

import shlex

from shared.plan import Plan
from shared.stacks.base import FileTree, Runtime
from shared.stacks.python_manifests import Manifests, editables, index_options
from shared.stacks.python_runtime import minor

WORKSPACE_URL = "file:///workspace"

_HEAD = """\
#!/bin/sh
# Runs {title}. The first time, it installs what the project needs into .venv beside this file.
# Needs: Python {version} (another version may do) with its venv module{network}.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")"
here=$(pwd -P)
unset PYTHONHOME PYTHONPATH || true

# What an installation was made of, and where: it is made again when either has changed.
pins=.orchestrator/requirements.txt
marker=.venv/.orchestrator-complete
stamp="$here $(cat "$pins" 2>/dev/null | cksum)"
if [ "$(cat "$marker" 2>/dev/null || true)" != "$stamp" ]; then
    python=
    for candidate in {candidates}; do
        # A name on PATH may be a shim for a version that is not there.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "run.sh: no Python 3.8 or newer was found; install Python {version}" >&2
        exit 127
    fi
    echo "run.sh: installing into $here/.venv with $("$python" --version 2>&1)" >&2
    rm -rf .venv
    if ! "$python" -m venv .venv >&2; then
        echo "run.sh: $python could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    fi
fi
VIRTUAL_ENV=$here/.venv
PATH=$VIRTUAL_ENV/bin:$PATH
PYTHONUNBUFFERED=1
export VIRTUAL_ENV PATH PYTHONUNBUFFERED
"""


def text(plan: Plan, files: FileTree, manifests: Manifests, runtime: Runtime | None, command: str, pins: str) -> str:
    """The script. `pins` are the exact versions installed here, which the script reads from `.orchestrator/`."""
    version = ".".join(map(str, minor(runtime))) if runtime else "3"
    candidates = f"python{version} python3 python" if version != "3" else "python3 python"
    network = " and, the first time, the network" if pins.strip() or manifests.package else ""
    script = _HEAD.format(
        title=_comment(plan.slug or "the project"), version=version, candidates=candidates, network=network
    )
    script += "".join(f"export {name}={shlex.quote(value)}\n" for name, value in plan.env.items())
    script += '\nif [ "$(cat "$marker" 2>/dev/null || true)" != "$stamp" ]; then\n'
    script += "".join(f"    {line}\n" for line in _installation(plan, files, manifests, pins))
    # Written last: an installation that was interrupted is made again.
    script += '    printf \'%s\\n\' "$stamp" >"$marker"\nfi\n'
    if not command.strip():
        return script + "\necho 'run.sh: installed; the project has nothing to start' >&2\n"
    return script + f"\nexec $(command -v bash || echo /bin/sh) -c {shlex.quote(command)}\n"


def _installation(plan: Plan, files: FileTree, manifests: Manifests, pins: str) -> list[str]:
    pip = "python -m pip install --disable-pip-version-check --quiet"
    options = "".join(f" {shlex.quote(option)}" for option in index_options(files, manifests))
    lines = []
    if pins.strip():
        source = '"$pins"'
        if WORKSPACE_URL in pins:
            # Packages of the project's own folder were recorded where the build saw them.
            source = ".venv/requirements.txt"
            lines.append("folder=$(printf '%s' \"$here\" | sed 's/%/%25/g; s/ /%20/g; s/[&|\\\\]/\\\\&/g')")
            lines.append(f'sed "s|{WORKSPACE_URL}|file://$folder|g" "$pins" >{source}')
        # Every package is named in it: resolving again could only find something else.
        lines.append(f"{pip} --no-deps{options} -r {source} >&2")
    for folder in editables(files, manifests.manager):
        lines.append(f"{pip} --no-deps{options} -e {shlex.quote('./' + folder)} >&2")
    if manifests.package or manifests.asks_for_itself:
        lines.append(f"{pip} --no-deps{options} -e . >&2")
    shell = "$(command -v bash || echo /bin/sh)"
    lines += [f"{shell} -c {shlex.quote(step)} >&2" for step in plan.post_install]
    return lines


def _comment(words: str) -> str:
    return "".join(character for character in words if character.isprintable())
