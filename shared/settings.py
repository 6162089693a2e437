"""Configuration: defaults < file < environment < what a command was told.

The file is JSON at `~/.config/orchestrator-toolkit/config.json` (`ORCHESTRATOR_CONFIG` names another). A variable
`ORCHESTRATOR_BROKER__URL` sets `broker.url`. An unknown key or wrong type names the key, where it was written and the
nearest right one.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from shared.errors import ConfigError
from shared.plan import NetworkPolicy

APP = "orchestrator-toolkit"
ENV_PREFIX = "ORCHESTRATOR_"
CONFIG_VARIABLE = "ORCHESTRATOR_CONFIG"

Positive = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LlmSettings(_Section):
    model: str = "gpt-4.1"
    temperature: float = 1.0
    max_retries: Annotated[int, Field(ge=0)] = 3
    cache_enabled: bool = True
    cache_ttl_seconds: Annotated[int, Field(ge=0)] = 86_400
    base_url: str = ""


class PathSettings(_Section):
    output_dir: str = "output"
    config_dir: str = Field(default_factory=lambda: str(_config_dir()))
    state_dir: str = Field(default_factory=lambda: platformdirs.user_state_dir(APP))
    cache_dir: str = Field(default_factory=lambda: platformdirs.user_cache_dir(APP))

    @property
    def state(self) -> Path:
        return Path(self.state_dir).expanduser().absolute()

    @property
    def cache(self) -> Path:
        return Path(self.cache_dir).expanduser().absolute()

    @property
    def output(self) -> Path:
        return Path(self.output_dir).expanduser().absolute()


class PluginSettings(_Section):
    enabled: list[str] = Field(default_factory=list)
    plugin_dir: str = "plugins"


class SecuritySettings(_Section):
    """Keys of the seed's version, kept so that its files load."""

    prefer_keyring: bool = True
    allow_plaintext_fallback: bool = True


class BrokerSettings(_Section):
    url: str = ""
    key_prefix: str = "orchestrator:"
    connect_timeout_s: Positive = 5.0


class WorkerSettings(_Section):
    stacks: list[str] = Field(default_factory=list)
    concurrency: Annotated[int, Field(ge=0)] = 0
    keep_projects: PositiveInt = 200
    deliver_max_bytes: PositiveInt = 256 * 1024 * 1024

    @property
    def slots(self) -> int:
        """Builds at once: as told, else two a processor (builds wait on the network and on disks much of the time)."""
        return self.concurrency or 2 * (os.cpu_count() or 1)


class SandboxSettings(_Section):
    kind: Literal["bubblewrap", "none"] = "bubblewrap"
    build_env: dict[str, str] = Field(default_factory=dict)


class LimitSettings(_Section):
    install_timeout_s: Positive = 900.0
    build_timeout_s: Positive = 900.0
    run_timeout_s: Positive = 120.0
    idle_timeout_s: Positive = 300.0
    output_bytes: PositiveInt = 1024 * 1024
    network: NetworkPolicy = "install"
    plan_bytes: PositiveInt = 20 * 1024 * 1024


class RecordSettings(_Section):
    ttl_s: PositiveInt = 7 * 86_400
    lease_s: Positive = 15.0


class FarmSettings(_Section):
    idle_exit_s: Positive = 3600.0
    start_timeout_s: Positive = 30.0


class Settings(BaseModel):
    """Everything configurable. Build one with `load_settings`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    llm: LlmSettings = Field(default_factory=LlmSettings)
    paths: PathSettings = Field(default_factory=PathSettings)
    plugins: PluginSettings = Field(default_factory=PluginSettings)
    security: SecuritySettings = Field(default_factory=SecuritySettings)
    broker: BrokerSettings = Field(default_factory=BrokerSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    sandbox: SandboxSettings = Field(default_factory=SandboxSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    records: RecordSettings = Field(default_factory=RecordSettings)
    farm: FarmSettings = Field(default_factory=FarmSettings)

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def origin(self, key: str) -> str:
        """Where a dotted key's value comes from: 'default', a file, a variable or 'command line'."""
        return self._origins.get(key, "default")


def config_file(environ: Mapping[str, str] | None = None) -> Path:
    """The configuration file in force, whether or not it exists."""
    environ = os.environ if environ is None else environ
    named = environ.get(CONFIG_VARIABLE)
    return Path(named).expanduser() if named else _config_dir() / "config.json"


def load_settings(
    overrides: Mapping[str, Any] | None = None, *, environ: Mapping[str, str] | None = None, file: Path | None = None
) -> Settings:
    """The settings in force; `overrides` are dotted keys from a command line. Raises `ConfigError`."""
    environ = os.environ if environ is None else environ
    path = file or config_file(environ)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value in _read_file(path):
        _put(values, key, value)
        origins[key] = str(path)
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and "__" in name:
            key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            _put(values, key, _decoded(environ[name], key))
            origins[key] = f"${name}"
    for key, value in (overrides or {}).items():
        _put(values, key, value)
        origins[key] = "command line"
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise _config_error(error, origins, path) from None
    settings._origins.update(origins)
    return settings


def _config_dir() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / APP


def _read_file(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    for section, content in data.items():
        if isinstance(content, dict):
            for key, value in content.items():
                yield f"{section}.{key}", value
        else:
            yield section, content


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    section, _, rest = key.partition(".")
    if not rest:
        values[section] = value
        return
    inner = values.setdefault(section, {})
    if isinstance(inner, dict):
        inner[rest] = value


def _decoded(text: str, key: str) -> Any:
    """A variable's text as the type its key wants: text stays text, all else is read as JSON."""
    section, _, name = key.partition(".")
    field = Settings.model_fields.get(section)
    model = field.annotation if field else None
    inner = model.model_fields.get(name) if isinstance(model, type) and issubclass(model, BaseModel) else None
    if inner is None or inner.annotation is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _config_error(error: ValidationError, origins: Mapping[str, str], path: Path) -> ConfigError:
    detail = error.errors()[0]
    key = ".".join(str(part) for part in detail["loc"])
    where = origins.get(key) or next((origin for name, origin in origins.items() if key.startswith(name)), str(path))
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, list(known_keys()), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "`orchestrator doctor` names the file in use"
        return ConfigError(f"unknown configuration key {key!r} in {where}", hint=hint)
    value = repr(detail.get("input"))
    return ConfigError(f"configuration key {key!r} in {where}: {detail['msg']} (it is {value[:80]})")


def known_keys() -> Iterator[str]:
    """Every dotted key there is."""
    for section, field in Settings.model_fields.items():
        yield section
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            for name in model.model_fields:
                yield f"{section}.{name}"
