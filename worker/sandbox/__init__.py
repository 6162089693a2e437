"""The boundary between a build and the machine: one interface, chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shared.errors import ConfigError
from worker.sandbox.base import (
    Bind,
    Mount,
    Overlay,
    Sandbox,
    SandboxReport,
    ThrowawayOverlay,
    View,
)

__all__ = [
    "SANDBOXES", "Bind", "Mount", "Overlay", "Sandbox", "SandboxReport", "ThrowawayOverlay", "View", "create",
]  # fmt: skip


def _bubblewrap(
    toolchain_roots: Sequence[Path], programs: Mapping[str, Path], hidden: Sequence[Path], scratch: Path
) -> Sandbox:
    from worker.sandbox.bubblewrap import Bubblewrap

    return Bubblewrap(toolchain_roots=toolchain_roots, programs=programs, hidden=hidden, scratch=scratch)


def _none(_roots: Sequence[Path], programs: Mapping[str, Path], _hidden: Sequence[Path], _scratch: Path) -> Sandbox:
    from worker.sandbox.none import NoSandbox

    return NoSandbox(programs=programs)


SANDBOXES: dict[str, Callable[[Sequence[Path], Mapping[str, Path], Sequence[Path], Path], Sandbox]] = {
    "bubblewrap": _bubblewrap,
    "none": _none,
}


def create(
    name: str,
    *,
    scratch: Path,
    toolchain_roots: Sequence[Path] = (),
    programs: Mapping[str, Path] | None = None,
    hidden: Sequence[Path] = (),
) -> Sandbox:
    """The sandbox of that name; ConfigError for an unknown one.

    `toolchain_roots` are seen read-only at their own path, `programs` by name in a folder of their own on PATH.
    `hidden` folders are never seen, except for toolchain roots inside them. `scratch` is a folder on the file system
    that environments are kept on.
    """
    try:
        make = SANDBOXES[name]
    except KeyError:
        raise ConfigError(
            f"sandbox.kind: there is no sandbox {name!r}", hint=f"one of: {', '.join(SANDBOXES)}"
        ) from None
    return make(toolchain_roots, programs or {}, hidden, scratch)
