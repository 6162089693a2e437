"""Lines of a requirements file, as pip reads them: options, names, paths.

The format is https://pip.pypa.io/en/stable/reference/requirements-file-format/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_ARCHIVES = (".whl", ".tar.gz", ".zip", ".tar.bz2")
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?")


def canonical(name: str) -> str:
    """A distribution's name in the one spelling (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_lines(text: str) -> Iterator[str]:
    """The logical lines of a requirements file, without comments."""
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        stripped = re.sub(r"(^|\s)#.*", "", line).strip()
        if stripped:
            yield stripped


def option(line: str, *names: str) -> str | None:
    """The value of an option that starts a line, in any of the forms pip accepts."""
    for name in names:
        if line == name:
            return ""
        if line.startswith((f"{name} ", f"{name}\t", f"{name}=")):
            return line[len(name) + 1 :].strip().strip("\"'")
        if len(name) == 2 and line.startswith(name) and not line.startswith("--"):
            return line[2:].strip()
    return None


def is_local(requirement: str) -> bool:
    """Whether a requirement is a path (PEP 508 names and URLs are not)."""
    text = requirement.split(";")[0].strip()
    if "@" in text and not text.startswith((".", "/")):
        text = text.split("@", 1)[1].strip()
        if text.startswith("file:"):
            return True
    if "://" in text:
        return text.startswith("file:")
    bare = re.sub(r"\[[^\]]*\]$", "", text)
    return bare in (".", "..") or bare.startswith(("./", "../", "/")) or bare.endswith(_ARCHIVES) or "/" in bare


def names_of(requirements: Iterable[str]) -> frozenset[str]:
    """Canonical names of requirements; one with extras is there with them and without."""
    names = set()
    for text in requirements:
        match = _NAME.match(text.strip())
        if not match or is_local(text):
            continue
        name = canonical(match[1])
        names.add(name)
        for extra in (match[2] or "[]")[1:-1].split(","):
            if extra.strip():
                names.add(f"{name}[{canonical(extra.strip())}]")
    return frozenset(names)
