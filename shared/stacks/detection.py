"""Which stack a plan is for, and why.

The order is STACKS.md's "Choosing the stack": the plan's `stack`, the first word of `run`, a manifest at the root, bare
sources, one folder down, commands only. A plan with a `run` always gets a stack.
"""

from __future__ import annotations

import difflib
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from shared.errors import PlanError, Problem
from shared.plan import Plan
from shared.stacks import STACKS
from shared.stacks.base import Evidence, FileTree, merge

GENERIC = "generic"
MAX_FOLDERS = 100  # past this nobody means "the one that is a project"
_SCRIPTS = ("*.sh", "*.bash", "Makefile", "makefile", "GNUmakefile", "justfile")


class _Detector(Protocol):
    """The part of a `Stack` that detection needs."""

    @property
    def RUN_WORDS(self) -> tuple[str, ...]: ...  # noqa: N802 - the name it has in `Stack`

    def detect(self, files: FileTree) -> Evidence | None: ...


@dataclass(frozen=True)
class _Signs:
    """What shows that a project is of a stack this installation has no module for.

    It is still recognised, so that the answer is "no worker for stack go" and not "what is this?".
    """

    name: str
    manifests: tuple[str, ...]
    RUN_WORDS: tuple[str, ...]
    sources: tuple[str, ...]

    def detect(self, files: FileTree) -> Evidence | None:
        for patterns, strength in ((self.manifests, 3), (self.sources, 2)):
            found = next((path for pattern in patterns for path in files.root(pattern)), None)
            if found:
                return Evidence(self.name, "", found, strength)
        return None


# In the order in which a manifest decides.
_KNOWN: Mapping[str, _Signs] = {
    signs.name: signs
    for signs in (
        _Signs("go", ("go.work", "go.mod"), ("go", "gofmt"), ("main.go", "*.go")),
        _Signs("rust", ("Cargo.toml",), ("cargo", "rustc"), ("main.rs", "*.rs")),
        _Signs(
            "java",
            ("pom.xml", "*.gradle", "*.gradle.kts"),
            ("java", "javac", "mvn", "mvnw", "gradle", "gradlew"),
            ("Main.java", "*.java"),
        ),
        _Signs(
            "cpp",
            ("CMakeLists.txt",),
            ("cmake", "make", "ctest", "ninja", "g++", "gcc", "clang", "clang++", "c++", "cc"),
            ("main.cpp", "*.cpp", "*.cc", "*.cxx", "*.c"),
        ),
        _Signs("python", ("pyproject.toml", "requirements.txt"), ("python", "python3"), ("*.py",)),
        _Signs(
            "node",
            ("package.json",),
            ("node", "npm", "npx", "pnpm", "pnpx", "yarn", "tsx", "ts-node", "tsc"),
            (
                "index.js",
                "index.ts",
                "index.mjs",
                "index.cjs",
                "server.js",
                "main.js",
                "app.js",
                "*.js",
                "*.mjs",
                "*.ts",
            ),
        ),
    )
}

# Words that start projects of every language: they decide only when no file does.
_VAGUE = ("make", "ninja")


@dataclass(frozen=True)
class Detection:
    """The stack of a plan and why it was chosen.

    `folder`: where the project is, "" for the plan's own folder; manifests are read there and inferred commands start
    there, while the plan's `run` starts at the plan's. `also`: other stacks whose signs are there too.
    """

    stack: str
    evidence: Evidence
    reason: str
    warnings: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    folder: str = ""


def detect(plan: Plan, files: FileTree) -> Detection:
    """The stack of a plan. Raises `PlanError` for an unknown `stack`, and when nothing at all shows which it is."""
    _refuse_options(plan)
    here = _evidence(files)
    if plan.stack is not None:
        return _named(plan.stack, files, here)
    word = run_word(plan.run)
    by_run = stack_of_word(word)
    if by_run and not (word in _VAGUE and here):
        evidence = here.get(by_run)
        folder = ""
        if evidence is None:
            folder, evidence = _one_below(files, by_run)
        return _detection(by_run, evidence, f"`{word}` in the plan's run", here, folder)
    if here:
        best = max(here.values(), key=lambda evidence: evidence.strength)  # of equals the first, in _KNOWN's order
        return _detection(best.stack, best, best.reason, here)
    folder, evidence = _one_below(files)
    if evidence:
        return _detection(evidence.stack, evidence, f"{evidence.reason}, in {folder}/", here, folder)
    if plan.run.strip() or plan.post_install or any(files.root(pattern) for pattern in _SCRIPTS):
        return _detection(GENERIC, None, "only commands: no manifest or source file of a known language", here)
    raise _unrecognised(files)


def names() -> tuple[str, ...]:
    """Every stack's name, registered here or not, in the order in which a manifest decides."""
    return merge(_KNOWN, (name for name in STACKS if name != GENERIC), (GENERIC,))


def run_word(run: str) -> str:
    """The program a shell command starts: of `cd x && PORT=1 bin/python3.12 -m y` it is python."""
    try:
        words = shlex.split(run.replace("\n", " ; "), comments=False)
    except ValueError:  # an unbalanced quote: the shell will say so
        words = run.split()
    skip_to_next = False
    for word in words:
        if skip_to_next:
            skip_to_next = word not in ("&&", ";") and not word.endswith(";")
        elif word in ("cd", "export", "source", ".", "set", "mkdir"):
            skip_to_next = True
        elif word not in ("exec", "env", "time", "nohup", "&&", ";") and not re.match(r"[A-Za-z_]\w*=", word):
            name = posixpath.basename(word.rstrip(";"))
            return "python" if re.fullmatch(r"python[23](\.\d+)?", name) else name
    return ""


def stack_of_word(word: str) -> str:
    """The stack a run command's program belongs to; empty when it could be any."""
    return next((name for name, detector in _detectors() if word and word in detector.RUN_WORDS), "")


def _detectors() -> Iterator[tuple[str, _Detector]]:
    for name in names():
        detector: _Detector | None = STACKS.get(name) or _KNOWN.get(name)
        if detector is not None and name != GENERIC:
            yield name, detector


def _evidence(files: FileTree) -> dict[str, Evidence]:
    """Every stack whose signs are in these files, in order."""
    found = {name: detector.detect(files) for name, detector in _detectors()}
    return {name: evidence for name, evidence in found.items() if evidence}


def _one_below(files: FileTree, stack: str = "") -> tuple[str, Evidence | None]:
    """The only child folder that shows a stack (that stack, when one is given), and what it shows."""
    found = [item for item in _below(files) if not stack or item[1].stack == stack]
    return found[0] if len(found) == 1 else ("", None)


def _below(files: FileTree) -> list[tuple[str, Evidence]]:
    found = []
    folders = files.folders()
    for folder in folders if len(folders) <= MAX_FOLDERS else ():
        if not folder.startswith("."):
            evidence = list(_evidence(files.folder(folder)).values())
            if evidence:
                found.append((folder, max(evidence, key=lambda item: item.strength)))
    return found


def _named(name: str, files: FileTree, here: Mapping[str, Evidence]) -> Detection:
    known = names()
    if name not in known:
        aliases = {
            "py": "python",
            "python3": "python",
            "js": "node",
            "javascript": "node",
            "typescript": "node",
            "ts": "node",
            "nodejs": "node",
            "golang": "go",
            "c": "cpp",
            "c++": "cpp",
            "gradle": "java",
            "maven": "java",
            "kotlin": "java",
            "cargo": "rust",
            "rs": "rust",
            "shell": GENERIC,
            "bash": GENERIC,
            "sh": GENERIC,
            "other": GENERIC,
        }
        close = aliases.get(name.lower()) or next(iter(difflib.get_close_matches(name.lower(), known, n=1)), "")
        hint = f"did you mean {close!r}? " if close else ""
        raise PlanError.one("stack", f"{name!r} is not a stack", f"{hint}known: {', '.join(known)}")
    evidence = here.get(name)
    folder = ""
    if evidence is None and name != GENERIC:
        folder, evidence = _one_below(files, name)
    return _detection(name, evidence, "the plan names it", here, folder)


def _detection(
    stack: str, evidence: Evidence | None, reason: str, here: Mapping[str, Evidence], folder: str = ""
) -> Detection:
    shown = evidence or Evidence(stack, "", reason, 1)
    if evidence and evidence.reason not in reason:
        reason = f"{reason}; {evidence.reason}" + (f", in {folder}/" if folder else "")
    also = tuple(name for name, other in here.items() if name != stack and other.strength >= min(3, shown.strength))
    if also:
        reason += " (also there: " + ", ".join(f"{here[name].reason} of {name}" for name in also) + ")"
    return Detection(stack, shown, reason, shown.warnings, also, folder)


def _refuse_options(plan: Plan) -> None:
    """No package of any stack is named like an option; taken as one it would do something else than install."""
    problems = [
        Problem(f"deps[{index}]", f"{text!r} is an option, not a package", "manifests among the files need no mention")
        for index, text in enumerate(plan.deps)
        if text.strip().startswith("-")
    ]
    if problems:
        raise PlanError(problems)


def _unrecognised(files: FileTree) -> PlanError:
    known = ", ".join(names())
    below = _below(files)
    if below:
        seen = "; ".join(f"{folder}/ looks like {evidence.stack} ({evidence.reason})" for folder, evidence in below)
        return PlanError.one(
            "stack",
            f"the plan has several projects and does not say which is meant: {seen}",
            f"give `run`, or submit one folder a plan, or set `stack` to one of {known}",
        )
    if not len(files):
        return PlanError.one(
            "stack", "there are packages to install, and no file says in which language", f"set it to one of {known}"
        )
    shown = ", ".join(list(files)[:5]) + (", …" if len(files) > 5 else "")
    manifests = ", ".join(signs.manifests[0] for signs in _KNOWN.values())
    return PlanError.one(
        "files",
        f"nothing shows what kind of project this is: {shown}",
        f"add a manifest ({manifests}) or source files, give `run`, or set `stack` to one of {known}",
    )
