"""Does the boundary hold on this machine? Asked from the inside, through the same path as every build."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import SandboxError
from worker.process import ProcessLimits, ProcessResult
from worker.sandbox.base import Overlay, SandboxReport, View
from worker.sandbox.seccomp import has_filter

if TYPE_CHECKING:
    from worker.sandbox.bubblewrap import Bubblewrap

_NAMESPACES = ("pid", "net", "ipc", "user", "uts", "mnt")
_CANARY = "ORCHESTRATOR_PROBE"

# One start of the sandbox: each line is a fact, by name. Only what every /bin/sh has, and no program that may lack.
_SCRIPT = r"""
for n in pid net ipc user uts mnt; do echo "ns.$n=$(readlink /proc/self/ns/$n)"; done
while read -r k v; do
  case $k in CapEff:|CapBnd:|NoNewPrivs:|Seccomp:) echo "status.$k$v";; esac
done < /proc/self/status
for f in /usr /etc / /opt /proc/sys/kernel/core_pattern /bin; do
  if [ -d "$f" ]; then
    if (: > "$f/.probe") 2>/dev/null; then echo "writable=$f"; fi
  elif [ -e "$f" ] && (: >> "$f") 2>/dev/null; then echo "writable=$f"; fi
done
for f in "$@"; do
  if [ -d "$f" ]; then
    for e in "$f"/* "$f"/.[!.]*; do if [ -e "$e" ]; then echo "visible=$e"; fi; done
  elif [ -s "$f" ]; then echo "visible=$f"; fi
done
for d in /proc/[0-9]*; do echo "process=${d#/proc/}"; done
if (echo x > /workspace/written && echo x > /tmp/written) 2>/dev/null; then echo "workspace=writable"; fi
if [ -e /workspace/overlay/lower ] && echo x > /workspace/overlay/upper; then echo "overlay=works"; fi
echo "environment=$(env | sed 's/=.*//' | sort | tr '\n' ' ')"
(sleep 300 >/dev/null 2>&1 </dev/null &)
"""

_HINT_USERNS = (
    "bubblewrap needs unprivileged user namespaces: set kernel.unprivileged_userns_clone=1 and "
    "kernel.apparmor_restrict_unprivileged_userns=0 (sysctl) where they exist; in a container allow them with "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined; "
    "or choose sandbox.kind 'docker'"
)


def probe(sandbox: Bubblewrap) -> SandboxReport:
    """What holds; raises SandboxError for what must and does not."""
    try:
        sandbox.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="probe-", dir=sandbox.scratch) as folder:
            return _probe_in(sandbox, Path(folder))
    except OSError as error:
        raise SandboxError(
            f"{sandbox.scratch} cannot be written: {error}", hint="give the worker a cache folder that it owns"
        ) from error


def _probe_in(sandbox: Bubblewrap, folder: Path) -> SandboxReport:
    workspace = folder / "workspace"
    overlay = Overlay(folder / "lower", folder / "upper", folder / "work", "overlay")
    for path in (workspace, overlay.lower, overlay.upper, overlay.work):
        path.mkdir()
    (overlay.lower / "lower").write_text("x")
    secrets, ways = _secrets(sandbox)
    command = ["/bin/sh", "-c", _SCRIPT, "probe", *map(str, secrets)]
    reason, notes = "", []
    result: ProcessResult | None = None
    fault: SandboxError | None = None
    # From the best this machine may be able to do to the least that is acceptable.
    for disable_userns, mounts in ((True, (overlay,)), (True, ()), (False, (overlay,)), (False, ())):
        sandbox.disable_userns = disable_userns
        try:
            result = _run(sandbox, View(workspace=workspace, binds=mounts), command)
        except SandboxError as error:
            fault = fault or error
            continue
        if not mounts or not (overlay.upper / "upper").exists():
            why = fault.message if fault else "what is written does not arrive"
            reason = f"overlay mounts do not work in {sandbox.scratch}: {why}"
        if not disable_userns:
            notes.append("commands can make user namespaces of their own (bubblewrap's --disable-userns fails here)")
        break
    if result is None:
        assert fault is not None
        raise SandboxError(fault.message, hint=_HINT_USERNS)
    facts = _facts(result.output.text)
    faults = _faults(sandbox, facts, workspace, ways)
    if faults or result.exit_code != 0:
        what = "; ".join(faults) or f"the probe ended with {result.exit_code}: {result.output.text.strip()[-300:]}"
        raise SandboxError(f"the sandbox does not hold: {what}", hint="do not run builds on this machine like this")
    if not has_filter():
        notes.append("no system call filter on this architecture")
    if os.getuid() == 0:
        notes.append("the worker runs as root: an ordinary user would leave an escape less to find")
    return SandboxReport(sandbox.name, True, not reason, reason, tuple(notes))


def _secrets(sandbox: Bubblewrap) -> tuple[list[Path], set[str]]:
    """The folders that must show nothing, and what they do show: the way to a toolchain inside them, step by step."""
    secrets = {path.resolve() for path in sandbox.hidden if path.exists()}
    ways: set[str] = set()
    for root in {path.resolve() for path in sandbox.toolchain_roots if path.is_dir()}:
        for secret in [path for path in secrets if path in root.parents]:
            steps = [root, *(step for step in root.parents if secret in step.parents)]
            ways.update(map(str, steps))
            secrets.update(steps[1:])
    return sorted(secrets), ways


def _run(sandbox: Bubblewrap, view: View, command: Sequence[str]) -> ProcessResult:
    before = os.environ.get(_CANARY)
    os.environ[_CANARY] = "must not be seen"
    try:
        return sandbox.run(view, command, ProcessLimits(timeout_s=20.0))
    finally:
        if before is None:
            del os.environ[_CANARY]
        else:
            os.environ[_CANARY] = before


def _facts(text: str) -> dict[str, list[str]]:
    facts: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition("=") if "=" in line else line.partition(":")
        facts.setdefault(name.strip(), []).append(value.strip())
    return facts


def _faults(sandbox: Bubblewrap, facts: Mapping[str, list[str]], workspace: Path, ways: Set[str]) -> list[str]:
    faults = []
    for name in _NAMESPACES:
        inside = facts.get(f"ns.{name}", [""])[0]
        if not inside.startswith(f"{name}:") or inside == os.readlink(f"/proc/self/ns/{name}"):  # noqa: PTH115
            faults.append(f"commands share the {name} namespace of this machine")
    for name, wanted in (("CapEff", "0" * 16), ("CapBnd", "0" * 16), ("NoNewPrivs", "1"), ("Seccomp", "2")):
        if facts.get(f"status.{name}", [""])[0] != wanted:
            faults.append(f"commands keep privileges ({name} is {facts.get(f'status.{name}')})")
    faults += [f"commands can write {path}" for path in facts.get("writable", [])]
    faults += [f"commands can see {path}" for path in facts.get("visible", []) if path not in ways]
    if len(facts.get("process", [])) > 8:
        faults.append("commands see processes that are not theirs")
    if facts.get("workspace") != ["writable"] or not (workspace / "written").exists():
        faults.append("commands cannot write their project")
    expected = {*sandbox.environment(View(workspace=workspace)), "_", "OLDPWD", "SHLVL"}
    extra = set(facts.get("environment", [""])[0].split()) - expected
    if extra or "environment" not in facts:
        faults.append(f"commands see variables of the worker: {', '.join(sorted(extra)) or 'unknown'}")
    namespace = facts.get("ns.pid", [""])[0]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            in_it = os.readlink(entry / "ns/pid") == namespace  # noqa: PTH115
            if in_it and (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z":
                faults.append(f"process {entry.name} outlived its command")
        except OSError:
            continue
    return faults
