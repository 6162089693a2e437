"""Handing a built project over: into a fresh folder, or as an archive to another machine.

What a build left behind is untrusted: only plain files, folders and links that stay inside the project are handed
over; devices, sockets, set-id bits and links that lead out are left behind and named.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from shared.errors import UsageError, WorkspaceError

# Not part of what is handed over: environments are rebuilt by run.sh, caches are anyone's to make again.
LEFT_OUT = frozenset({".venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"})
ARCHIVE_CHUNK_BYTES = 1024 * 1024


def fresh_folder(output_dir: Path, slug: str) -> Path:
    """Make and return `output_dir/slug`, or `slug-2`, `slug-3`… so that nothing is ever overwritten."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for number in range(1, 100_000):
            folder = output_dir / (slug if number == 1 else f"{slug}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise UsageError(
            f"cannot write the project to {output_dir}: {error.strerror}", hint="name another folder with -o"
        ) from None
    raise UsageError(f"{output_dir} holds too many folders called {slug}", hint="name another folder with -o")


def deliver(source: Path, output_dir: Path, slug: str) -> tuple[Path, list[str]]:
    """Copy a built project into a fresh folder: the folder, and what was left behind and why."""
    folder = fresh_folder(output_dir, slug)
    skipped: list[str] = []
    try:
        _copy(source, folder, source, skipped)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise WorkspaceError(
            f"cannot write the project to {folder}: {error.strerror}", hint="free some space or use -o"
        ) from None
    return folder, skipped


def archive(source: Path) -> Iterator[bytes]:
    """The project as chunks of a gzipped tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w|gz", compresslevel=1) as tar:
        for path, relative in _members(source):
            tar.add(path, arcname=relative, recursive=False)
            if buffer.tell() >= ARCHIVE_CHUNK_BYTES:
                yield buffer.getvalue()
                buffer.seek(0)
                buffer.truncate()
    yield buffer.getvalue()


def unpack(chunks: Iterable[bytes], output_dir: Path, slug: str) -> tuple[Path, list[str]]:
    """Unpack an archive into a fresh folder: the folder, and what was left behind and why."""
    folder = fresh_folder(output_dir, slug)
    skipped: list[str] = []
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Stream(chunks)), mode="r|gz") as tar:
            for member in tar:
                try:
                    tar.extract(member, folder, filter="data")
                except tarfile.FilterError as error:
                    skipped.append(str(error))
    except (OSError, tarfile.TarError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise WorkspaceError(
            f"cannot write the project to {folder}: {error}", hint="free some space or use -o"
        ) from None
    return folder, skipped


class _Stream:
    """The chunks of an archive as a file to read from."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def _members(source: Path) -> Iterator[tuple[Path, str]]:
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
        for name in [*folders, *sorted(files)]:
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or (stat.S_ISLNK(mode) and link_stays(path, source)):
                yield path, str(path.relative_to(source))


def _copy(source: Path, target: Path, root: Path, skipped: list[str]) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.name in LEFT_OUT:
                continue
            path, goal = Path(entry.path), target / entry.name
            if entry.is_symlink():
                if link_stays(path, root):
                    goal.symlink_to(path.readlink())
                else:
                    skipped.append(f"{path.relative_to(root)}: a link that leads out of the project")
            elif entry.is_dir(follow_symlinks=False):
                goal.mkdir()
                _copy(path, goal, root, skipped)
            elif entry.is_file(follow_symlinks=False):
                shutil.copyfile(path, goal, follow_symlinks=False)
                goal.chmod(stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode) & 0o755 | 0o600)
            else:
                skipped.append(f"{path.relative_to(root)}: neither a file, a folder nor a link")


def link_stays(path: Path, root: Path) -> bool:
    """Whether a symbolic link is relative and its text never leaves `root`."""
    text = str(path.readlink())
    if text.startswith("/"):
        return False
    joined = os.path.normpath(os.path.join(os.path.relpath(path.parent, root), text))  # noqa: PTH118 - text only
    return joined != ".." and not joined.startswith("../")
