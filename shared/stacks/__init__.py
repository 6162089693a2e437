"""The stacks: one module each, registered here and nowhere else."""

from __future__ import annotations

from shared.stacks.base import Stack
from shared.stacks.python import PythonStack

STACKS: dict[str, Stack] = {"python": PythonStack()}
