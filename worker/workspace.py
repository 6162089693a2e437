"""The directory a build lives in: safe writes, a place for overlays, clean-up whatever was left in it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from shared.errors import WorkspaceError
from shared.plan import Plan

EXECUTABLE_NAMES = frozenset({"gradlew", "mvnw", "configure"})


class Workspace:
    """The folders of one build below `root`: `project` (what the build sees), `tmp`, and the upper layers of its
    environments. `destroy` removes it all."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.project = root / "project"
        self.tmp = root / "tmp"

    @classmethod
    def create(cls, root: Path) -> Workspace:
        """A new workspace; raises `WorkspaceError` when it cannot be made."""
        workspace = cls(root)
        try:
            if root.exists():
                workspace.destroy()
            root.mkdir(parents=True, mode=0o700)
            workspace.project.mkdir()
            workspace.tmp.mkdir(mode=0o1777)
        except OSError as error:
            raise WorkspaceError(
                f"cannot make a workspace in {root.parent}: {error.strerror}", hint="check its space and permissions"
            ) from None
        return workspace

    def write_plan(self, plan: Plan) -> None:
        """Write the plan's files. Scripts lose CRLF and get their run bit: plans are text and lose both."""
        for file in plan.files:
            script = is_script(file.filename, file.content)
            content = file.content.replace(b"\r\n", b"\n") if script and file.encoding == "utf-8" else file.content
            executable = script if file.executable is None else file.executable
            self.write(file.filename, content, executable=executable)

    def write(self, path: str, content: bytes, *, executable: bool = False) -> None:
        """Write one file of the project; never through a link that is already there."""
        write_file(self.project, path, content, executable=executable)

    def layer(self, name: str) -> tuple[Path, Path]:
        """The upper and work folders of an overlay of this build."""
        upper, work = self.root / "layers" / name / "upper", self.root / "layers" / name / "work"
        upper.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        return upper, work

    def destroy(self) -> None:
        """Remove the workspace, folders without permissions included."""
        remove_tree(self.root)


def is_script(path: str, content: bytes) -> bool:
    """Whether a file is one that a shell starts directly."""
    name = path.rpartition("/")[2]
    return name.endswith(".sh") or name in EXECUTABLE_NAMES or content.startswith(b"#!")


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write several files below a folder (see `write_file`)."""
    for path, content in files.items():
        write_file(folder, path, content)


def write_file(folder: Path, path: str, content: bytes, *, executable: bool = False) -> None:
    """Write one file below a folder, component by component, following no link. Raises `WorkspaceError`."""
    *parents, name = path.split("/")
    descriptor = -1
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        for parent in parents:
            try:
                inner = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            except FileNotFoundError:
                os.mkdir(parent, dir_fd=descriptor)
                inner = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        target = os.open(name, flags, 0o755 if executable else 0o644, dir_fd=descriptor)
        with os.fdopen(target, "wb") as stream:
            stream.write(content)
    except OSError as error:
        raise WorkspaceError(
            f"cannot write {path} below {folder}: {error.strerror}", hint="check the space and permissions there"
        ) from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def remove_tree(root: Path) -> None:
    """Remove a folder and all in it, restoring permissions where a build took them away."""

    def unlock(function: Callable[..., object], path: str, _error: object) -> None:
        parent = os.path.dirname(path)  # noqa: PTH120 - handed a string
        for place in (parent, path):
            try:
                if not stat.S_ISLNK(os.lstat(place).st_mode):
                    os.chmod(place, 0o700)  # noqa: PTH101
            except OSError:
                continue
        try:
            if function in (os.open, os.scandir, os.lstat) or os.path.isdir(path):  # noqa: PTH112
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)  # noqa: PTH108
        except OSError:
            pass

    shutil.rmtree(root, onerror=unlock)
    if root.exists():
        shutil.rmtree(root, ignore_errors=True)
