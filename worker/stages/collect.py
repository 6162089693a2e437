"""Collect: artifacts, `run.sh`, and the project handed over."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from shared.delivery import deliver
from shared.result import Artifact, StageResult
from worker.stages.context import Context, Stage
from worker.workspace import remove_tree, write_file

MAX_ARTIFACTS = 1_000
METADATA = ".orchestrator"


def collect(context: Context) -> tuple[StageResult, list[Artifact]]:
    """Write what the delivered project needs and hand it over. Sets `context.project_dir`."""
    stage = Stage(context, "collect")
    project = context.workspace.project
    artifacts = list(_artifacts(project, context.plan.artifacts)) if context.plan.artifacts else []
    for pattern in context.plan.artifacts:
        if not any(_matches(pattern, artifact.path) for artifact in artifacts):
            context.warn(f"artifacts: nothing matches {pattern!r}")
    _write_launcher(context)
    _remove_mount_points(context)
    if context.deliver_to is not None:
        folder, left = deliver(project, context.deliver_to, context.plan.slug)
        for text in left[:20]:
            context.warn(f"not delivered: {text}")
        context.project_dir = folder
    else:
        kept = context.machine.cache / "projects" / context.build_id
        if kept.exists():  # an earlier attempt got this far and was never reported
            remove_tree(kept)
        project.rename(kept)
        context.project_dir = kept
    return stage.result(), artifacts


def _write_launcher(context: Context) -> None:
    """`run.sh` and `.orchestrator/`: how to run the project again, here or anywhere."""
    project = context.workspace.project
    command = context.run_choice.command
    facts = {
        "build_id": context.build_id,
        "name": context.plan.name,
        "stack": context.stack.NAME,
        "run_cmd": command.display if command else "",
        "plan": context.plan.model_dump(mode="json", exclude={"files"}, exclude_defaults=True),
    }
    _replace_folder(project / METADATA)
    write_file(project, f"{METADATA}/build.json", (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
    write_file(project, f"{METADATA}/requirements.txt", context.pins.encode())
    if command is None:
        return
    script = context.stack.run_script(
        context.plan, context.files, command.display, context.pins, context.layout.runtime
    )
    name = "run.sh"
    if name in context.files:
        name = f"{METADATA}/run.sh"
        context.warn(f"the project has a run.sh of its own; the generated one is {name}")
    elif (project / name).is_symlink() or (project / name).exists():
        (project / name).unlink()
    write_file(project, name, script.encode(), executable=True)


def _replace_folder(folder: Path) -> None:
    """A folder of ours, whatever the build put in its place."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    folder.mkdir(exist_ok=True)


def _remove_mount_points(context: Context) -> None:
    """The empty folders that environments were mounted on."""
    for overlay in context.overlays:
        point = context.workspace.project / overlay.target.removeprefix(f"{context.layout.workspace}/")
        try:
            point.rmdir()
        except OSError:
            context.warn(f"{point.name} could not be removed from the delivered project")


def _artifacts(project: Path, patterns: tuple[str, ...]) -> Iterator[Artifact]:
    found = 0
    for folder, folders, files in os.walk(project):
        folders[:] = sorted(name for name in folders if name != ".venv")
        for name in sorted(files):
            path = Path(folder) / name
            relative = str(path.relative_to(project))
            if not any(_matches(pattern, relative) for pattern in patterns):
                continue
            if not stat.S_ISREG(path.lstat().st_mode):
                continue
            found += 1
            if found > MAX_ARTIFACTS:
                return
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            yield Artifact(path=relative, size_bytes=path.lstat().st_size, sha256=digest)


def _matches(pattern: str, path: str) -> bool:
    """Glob matching with `**` for any folders; `*` stays within one."""
    regex = "".join(
        {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
        for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    )
    return re.fullmatch(regex, path) is not None
