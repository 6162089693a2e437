"""Plan: the wire format in, and the only border check.

Everything past `Plan.parse` may trust what it says: paths stay inside the project, contents decode, limits are
positive. The rules are DESIGN.md's; a violation is one `PlanError` that names the field and what would be right.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from pydantic_core import ErrorDetails

from shared.errors import PlanError, Problem

MAX_COMPONENT_BYTES = 255  # NAME_MAX of every Linux file system in use
MAX_PATH_BYTES = 1024  # well under PATH_MAX (4096), which also has to hold the folder around it
MAX_FILES = 20_000
MAX_SLUG_LENGTH = 60

# Ours, or built by the farm: a plan that brought its own would be hidden by, or hide, the environment.
RESERVED_ROOTS = (".orchestrator", ".venv", ".git")

NetworkPolicy = Literal["none", "install", "full"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
PositiveInt = Annotated[int, Field(gt=0, strict=True)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlanFile(_Model):
    """One file of the project: a relative POSIX path and its content as text or base64."""

    filename: StrictStr
    code: StrictStr
    encoding: Literal["utf-8", "base64"] = "utf-8"
    executable: StrictBool | None = None

    @cached_property
    def content(self) -> bytes:
        """The file's bytes."""
        return base64.b64decode(self.code) if self.encoding == "base64" else self.code.encode("utf-8")


class Limits(_Model):
    """What one build may use. None means the farm's default for that limit."""

    install_timeout_s: Positive | None = None
    build_timeout_s: Positive | None = None
    run_timeout_s: Positive | None = None
    idle_timeout_s: Positive | None = None
    memory_mb: PositiveInt | None = None
    cpus: Positive | None = None
    processes: PositiveInt | None = None
    disk_mb: PositiveInt | None = None
    output_bytes: PositiveInt | None = None
    network: NetworkPolicy | None = None


class Service(_Model):
    """The run is a server: healthy when it answers, then stopped."""

    port: Annotated[int, Field(ge=1, le=65535, strict=True)] | None = None
    path: Annotated[str, Field(pattern=r"^/")] = "/"
    ready_timeout_s: Positive = 30.0


class CommandCheck(_Model):
    """A shell command that must end with `exit_code` and, if given, print `contains`."""

    command: Annotated[StrictStr, Field(min_length=1)]
    exit_code: StrictInt = 0
    contains: StrictStr | None = None


class HttpCheck(_Model):
    """A request to the service: a path, the status it must answer with and a text its body must contain."""

    http: Annotated[StrictStr, Field(pattern=r"^/")]
    status: Annotated[int, Field(ge=100, le=599, strict=True)] | None = None
    contains: StrictStr | None = None


Command = Annotated[StrictStr, Field(min_length=1)]


class Plan(_Model):
    """What an agent hands in. See DESIGN.md for what each field means."""

    name: StrictStr = "project"
    description: StrictStr = ""
    files: tuple[PlanFile, ...] = ()
    deps: tuple[Command, ...] = ()
    post_install: tuple[Command, ...] = ()
    run: StrictStr = ""
    stack: StrictStr | None = None
    env: dict[StrictStr, StrictStr] = Field(default_factory=dict)
    limits: Limits = Field(default_factory=Limits)
    service: Service | None = None
    checks: tuple[CommandCheck | HttpCheck, ...] = ()
    artifacts: tuple[Command, ...] = ()
    priority: Annotated[int, Field(ge=0, le=9, strict=True)] = 0

    @classmethod
    def parse(cls, data: object) -> Self:
        """A checked plan from decoded JSON; raises `PlanError` naming every fault."""
        if not isinstance(data, Mapping):
            raise PlanError.one("", f"a plan is a JSON object, this is {_kind(data)}", 'e.g. {"name": …, "files": […]}')
        try:
            plan = cls.model_validate(dict(data))
        except ValidationError as error:
            raise PlanError([_problem(detail) for detail in error.errors()]) from None
        problems = list(_check(plan))
        if problems:
            raise PlanError(problems)
        return plan

    @classmethod
    def parse_json(cls, text: str | bytes, *, source: str = "plan", max_bytes: int | None = None) -> Self:
        """A checked plan from JSON text; a syntax error is reported with its line and column."""
        size = len(text)
        if max_bytes is not None and size > max_bytes:
            raise PlanError.one(
                "",
                f"{source} is {size:,} bytes, the limit is {max_bytes:,}",
                "leave data files out of the plan, or raise limits.plan_bytes",
            )
        try:
            data = json.loads(text)
        except UnicodeDecodeError as error:
            raise PlanError.one("", f"{source} is not UTF-8 (byte {error.start})", "save it as UTF-8") from None
        except json.JSONDecodeError as error:
            raise PlanError.one(
                "",
                f"{source} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}",
                "check it with `python -m json.tool`",
            ) from None
        except RecursionError:
            raise PlanError.one("", f"{source} is nested too deeply to be a plan") from None
        return cls.parse(data)

    @cached_property
    def slug(self) -> str:
        """The project's folder name: lower-case words joined by hyphens."""
        return slugify(self.name)

    @cached_property
    def canonical(self) -> bytes:
        """The plan as bytes that are equal for equal plans (sorted keys, defaults left out)."""
        document = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `canonical`, in hex."""
        return hashlib.sha256(self.canonical).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, every field present: what plugins are given."""
        return self.model_dump(mode="json")


def slugify(name: str) -> str:
    """`name` as a folder name; empty when no letter or digit is in it."""
    text = unicodedata.normalize("NFKC", name).lower()
    words = re.sub(r"[^\w]+", "-", text).replace("_", "-")
    slug = re.sub(r"-+", "-", words).strip("-")[:MAX_SLUG_LENGTH].strip("-")
    while len(slug.encode()) > 200:
        slug = slug[:-1]
    return slug


def path_fault(path: str) -> tuple[str, str] | None:
    """Why `path` may not name a file of a project, and what would be right; None when it may."""
    if not path:
        return "is empty", "a relative path such as src/main.py"
    if "\0" in path:
        return "holds a NUL byte", "a plain relative path"
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in path):
        return f"{path!r} holds a control character", "a plain relative path"
    if path.startswith("/") or re.match(r"^[A-Za-z]:[\\/]", path):
        return f"{path!r} is absolute", "a path relative to the project, such as " + (
            path.strip("/\\").split("/")[-1] or "main.py"
        )
    if "\\" in path:
        return f"{path!r} holds a backslash", f"forward slashes: {path.replace(chr(92), '/')!r}"
    parts = path.split("/")
    if ".." in parts:
        return f"{path!r} leaves the project", "a path inside the project, without '..'"
    if "." in parts or "" in parts:
        clean = "/".join(part for part in parts if part not in (".", ""))
        return f"{path!r} is not in its plain form", repr(clean)
    if len(path.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_COMPONENT_BYTES for part in parts):
        return (
            f"{path[:40] + '…'!r} is too long",
            f"at most {MAX_COMPONENT_BYTES} bytes a name, {MAX_PATH_BYTES} a path",
        )
    if parts[0] in RESERVED_ROOTS:
        return f"{path!r} is in {parts[0]}/, which is reserved", "leave it out: the farm makes its own"
    return None


def _check(plan: Plan) -> list[Problem]:
    """What types alone cannot say."""
    problems = []
    if not plan.slug:
        problems.append(Problem("name", f"{plan.name!r} has no letter or digit to name a folder by", "e.g. 'todo-api'"))
    if not plan.files and not plan.run and not plan.post_install and not plan.deps:
        problems.append(Problem("files", "the plan is empty", "at least one file, or a run command"))
    if len(plan.files) > MAX_FILES:
        problems.append(Problem("files", f"{len(plan.files):,} files", f"at most {MAX_FILES:,}"))
    problems += _check_files(plan)
    for name, value in plan.env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            problems.append(Problem("env", f"{name!r} is not a variable name", "letters, digits and underscores"))
        if "\0" in value:
            problems.append(Problem(f"env.{name}", "holds a NUL byte"))
    for field in ("deps", "post_install", "artifacts"):
        for index, text in enumerate(getattr(plan, field)):
            if "\0" in text or not text.strip():
                problems.append(Problem(f"{field}[{index}]", "is blank or holds a NUL byte"))
    if "\0" in plan.run:
        problems.append(Problem("run", "holds a NUL byte"))
    for index, pattern in enumerate(plan.artifacts):
        fault = path_fault(pattern)
        if fault:
            problems.append(Problem(f"artifacts[{index}]", *fault))
    return problems


def _check_files(plan: Plan) -> list[Problem]:
    problems = []
    seen: dict[str, int] = {}
    for index, file in enumerate(plan.files):
        field = f"files[{index}].filename"
        fault = path_fault(file.filename)
        if fault:
            problems.append(Problem(field, *fault))
            continue
        if file.filename in seen:
            problems.append(
                Problem(field, f"{file.filename!r} is also files[{seen[file.filename]}]", "one entry a file")
            )
        seen.setdefault(file.filename, index)
        if file.encoding == "base64":
            try:
                base64.b64decode(file.code, validate=True)
            except (binascii.Error, ValueError):
                problems.append(
                    Problem(f"files[{index}].code", f"{file.filename!r} is not valid base64", "standard base64, padded")
                )
        else:
            try:
                file.code.encode("utf-8")
            except UnicodeEncodeError:
                problems.append(
                    Problem(
                        f"files[{index}].code",
                        f"{file.filename!r} holds a lone surrogate",
                        "use encoding base64 for binary files",
                    )
                )
    for path, index in seen.items():
        parent = path.rpartition("/")[0]
        while parent:
            if parent in seen:
                problems.append(
                    Problem(
                        f"files[{index}].filename",
                        f"{path!r} needs a folder where {parent!r} is a file",
                        "rename one of them",
                    )
                )
                break
            parent = parent.rpartition("/")[0]
    return problems


def _problem(detail: ErrorDetails) -> Problem:
    """One pydantic error in a plan writer's words."""
    field = _field_path(detail["loc"])
    kind = detail["type"]
    value = detail.get("input")
    if kind == "extra_forbidden":
        name = str(detail["loc"][-1])
        known = _fields_at(detail["loc"])
        close = difflib.get_close_matches(name, known, n=1)
        return Problem(field, "unknown field", f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}")
    if kind == "missing":
        return Problem(field, "is missing")
    if kind in (
        "greater_than",
        "greater_than_equal",
        "less_than_equal",
        "literal_error",
        "string_pattern_mismatch",
        "string_too_short",
    ):
        return Problem(field, f"{_shown(value)} is not allowed", detail["msg"])
    return Problem(field, f"{_shown(value)} is the wrong type", detail["msg"])


_UNION_TAGS = {"CommandCheck", "HttpCheck"}


def _field_path(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part not in _UNION_TAGS and part != "[key]":
            text += f".{part}" if text else part
    return text


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    models: dict[str, type[BaseModel]] = {
        "files": PlanFile,
        "limits": Limits,
        "service": Service,
        "CommandCheck": CommandCheck,
        "HttpCheck": HttpCheck,
    }
    for part in reversed(loc[:-1]):
        if isinstance(part, str) and part in models:
            return sorted(models[part].model_fields)
    return sorted(Plan.model_fields)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _kind(value: object) -> str:
    names = {
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
