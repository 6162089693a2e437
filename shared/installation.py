"""That our packages are ours.

`producer`, `worker`, `shared` and `plugins` are common words: a folder of the same name where a command is started, or
a package installed beside us, could be imported in their place.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from shared.errors import ShadowedInstallation

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("shared", "plugins", "producer", "worker")


def verify(*names: str) -> None:
    """Raise `ShadowedInstallation` if one of our packages was, or would be, imported from somewhere else."""
    for name in names or PACKAGES:
        module = sys.modules.get(name) or importlib.import_module(name)
        origin = getattr(module, "__file__", None)
        found = Path(origin).resolve().parent if origin else None
        if found != ROOT / name:
            raise ShadowedInstallation(
                f"the package {name!r} was imported from {found or 'a folder without __init__.py'}, not from {ROOT}",
                hint="start from another folder, take that folder off PYTHONPATH, or use the `orchestrator` command",
            )
