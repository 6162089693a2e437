"""PluginManager: loads plugins, fires their hooks, and keeps their faults to themselves."""

from __future__ import annotations

import copy
import inspect
import logging
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugins import discovery

HOOK_NAMES = ("pre_execute", "post_execute", "pre_run", "post_run")

# Past these events there is nothing left to refuse.
_VETOABLE = frozenset({"pre_execute", "pre_run"})

# The names under which plugins of different ages expect the same value.
_ALIASES = {"post_run": (("return_code", "rc"), ("rc", "return_code"))}

MAX_NOTE_CHARACTERS = 500  # notes travel in the result, which a plugin must not be able to swell

_log = logging.getLogger("orchestrator.plugins")


class PluginVeto(Exception):
    """Raised by a plugin in `pre_execute` or `pre_run` to refuse the build; its text is the reason shown to people.

    As it leaves the manager, `plugin` names who refused and `notes` holds the other plugins' faults until then.
    """

    def __init__(self, reason: str = "", *, plugin: str = "", notes: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.plugin = plugin
        self.notes = notes


@dataclass(frozen=True)
class LoadedPlugin:
    """One plugin as found: `source` is its file or package, `error` the traceback if it could not be loaded."""

    name: str
    description: str = ""
    version: str = ""
    source: str = ""
    hooks: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class HookOutcome:
    """What firing a hook came to: the value (None: nobody returned one), and a note for each plugin's fault."""

    value: Any = None
    notes: tuple[str, ...] = ()


@dataclass(eq=False)
class _Record:
    """A plugin while it may still change: `register` can rename it, and hooks can come later."""

    name: str
    source: str
    description: str = ""
    version: str = ""
    module: str = ""
    error: str = ""


@dataclass(frozen=True)
class _Signature:
    """Which of a hook's arguments a callback takes."""

    positional: tuple[str, ...]
    named: frozenset[str]
    takes_rest: bool

    @classmethod
    def of(cls, callback: Callable[..., Any]) -> _Signature:
        try:
            parameters = list(inspect.signature(callback, follow_wrapped=False).parameters.values())
            positional = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_ONLY)
            takes_rest = any(p.kind is p.VAR_KEYWORD for p in parameters)
            if takes_rest:
                # A decorator's `**kwargs` ends in the decorated function, which fails on what it does not know.
                decorated = inspect.signature(callback).parameters.values()
                takes_rest = any(p.kind is p.VAR_KEYWORD for p in decorated)
                parameters += decorated
        except (TypeError, ValueError):
            return cls((), frozenset(), True)  # some callables written in C do not tell
        named = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        return cls(positional, named, takes_rest)

    def select(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Copies of those `arguments` that the callback takes."""
        return {
            name: copy.deepcopy(value)
            for name, value in arguments.items()
            if self.takes_rest or name in self.named or name in self.positional
        }


@dataclass(frozen=True)
class _Hook:
    callback: Callable[..., Any]
    signature: _Signature
    owner: _Record | None

    @property
    def plugin(self) -> str:
        if self.owner is not None:
            return self.owner.name
        return str(getattr(self.callback, "__qualname__", type(self.callback).__qualname__))

    def __call__(self, arguments: Mapping[str, Any]) -> object:
        named = dict(arguments)
        first = [named.pop(name) for name in self.signature.positional if name in named]
        return self.callback(*first, **named)


@dataclass
class _Notes:
    """The notes of one firing. Each firing has its own, since several builds fire at once."""

    event: str
    texts: list[str] = field(default_factory=list)

    def add(self, hook: _Hook, text: str) -> None:
        note = f"plugin {hook.plugin!r} {self.event}: {text}"
        self.texts.append(note if len(note) <= MAX_NOTE_CHARACTERS else note[: MAX_NOTE_CHARACTERS - 1] + "…")


# Whose `register` is running on this thread: hooks added meanwhile are that plugin's.
_registering: ContextVar[_Record | None] = ContextVar("orchestrator_plugin_registering", default=None)


class PluginManager:
    """The plugins of one process and their hooks. Hooks may be fired from many threads at once.

    Every callback gets its own copies of the arguments it names (all of them with `**kwargs`). What it does to them
    is seen by nobody: only a plan returned from `pre_execute` changes the plan.
    """

    def __init__(self) -> None:
        self._records: list[_Record] = []
        self._hooks: dict[str, tuple[_Hook, ...]] = dict.fromkeys(HOOK_NAMES, ())
        self._seen: set[tuple[str, str]] = set()
        self._strays: set[tuple[str, str]] = set()
        self._lock = threading.Lock()  # the records and hooks; never held while a plugin's code runs
        self._discovering = threading.RLock()  # a plugin's `register` may discover more

    def discover(self, plugin_dir: Path | None = None, *, enabled: Sequence[str] = ()) -> None:
        """Load every plugin of `plugin_dir` (None: the installation's `plugins/`), of `enabled`, and of entry points.

        May be called again for another folder; what was loaded, or failed to, is not loaded again. A plugin that
        fails is in `plugins` with its traceback, and none of its hooks is kept. `enabled` are names of modules: of a
        file in `plugin_dir` or the installation's `plugins/`, else of something importable. Never raises for a plugin.
        """
        with self._discovering:
            for candidate in discovery.find(plugin_dir, enabled):
                if candidate.identity not in self._seen:
                    self._seen.add(candidate.identity)
                    self._load(candidate)
                elif candidate.requested and candidate.identity in self._strays:
                    self._strays.remove(candidate.identity)
                    self._failed(_Record(candidate.name, candidate.source), _no_plugin(candidate))

    def add_hook(self, event: str, callback: Callable[..., Any]) -> None:
        """Call `callback` whenever `event` fires, after those added before.

        Raises ValueError if there is no such event, TypeError if `callback` cannot be called.
        """
        _check_event(event)
        if not callable(callback):
            raise TypeError(f"hook {event!r} needs something to call, not {type(callback).__name__}")
        signature = _Signature.of(callback)
        with self._lock:
            hook = _Hook(callback, signature, _registering.get() or self._author(callback))
            self._hooks[event] = (*self._hooks[event], hook)

    def register_plugin(self, name: str, description: str = "") -> None:
        """List a plugin that is not a module. From a plugin's `register`, it names that plugin."""
        record = _registering.get()
        with self._lock:
            if record is None:
                record = next((known for known in self._records if known.name == name and not known.error), None)
            if record is None:
                record = _Record(name, "registered by the program")
                self._records.append(record)
            record.name, record.description = name, description or record.description

    def list_plugins(self) -> list[tuple[str, str]]:
        """Name and description of each working plugin, in the order of loading."""
        return [(plugin.name, plugin.description) for plugin in self.plugins if not plugin.error]

    @property
    def plugins(self) -> tuple[LoadedPlugin, ...]:
        """Every plugin found, those that failed included, in the order of loading."""
        with self._lock:
            return tuple(
                LoadedPlugin(
                    name=record.name,
                    description=record.description,
                    version=record.version,
                    source=record.source,
                    hooks=tuple(
                        event for event in HOOK_NAMES if any(hook.owner is record for hook in self._hooks[event])
                    ),
                    error=record.error,
                )
                for record in self._records
            )

    def hook(self, event: str, **arguments: object) -> Any:
        """Fire `event` and return the last result that is not None; for `pre_execute` the changed plan, or None.

        Raises as `fire` does.
        """
        return self.fire(event, **arguments).value

    def fire(self, event: str, **arguments: object) -> HookOutcome:
        """Call every callback of `event` in order, and return what came of it.

        In `pre_execute` each callback gets the plan the one before returned; None, or anything but a dict, leaves it
        as it was. Raises PluginVeto if a callback of `pre_execute` or `pre_run` raises it or PermissionError, and
        ValueError if there is no such event. Whatever else a plugin raises (SystemExit included) is logged, becomes a
        note, and the next callback is called; KeyboardInterrupt passes through.
        """
        _check_event(event)
        for present, alias in _ALIASES.get(event, ()):
            if present in arguments:
                arguments.setdefault(alias, arguments[present])
        notes = _Notes(event)
        value: Any = None
        for hook in self._hooks[event]:
            given = hook.signature.select(arguments)
            try:
                returned = hook(given)
                complaint = _complaint(event, returned, given, arguments)
                if event == "pre_execute" and not complaint:
                    returned = copy.deepcopy(returned)  # the plugin may keep its own and change it later
            except (Exception, SystemExit) as error:
                if event in _VETOABLE and isinstance(error, PluginVeto | PermissionError):
                    # A new exception: a plugin may raise one and the same from the threads of several builds.
                    reason = _text(error) or "no reason given"
                    raise PluginVeto(reason, plugin=hook.plugin, notes=tuple(notes.texts)) from error
                _log.exception("plugin %r failed in %s", hook.plugin, event)
                notes.add(hook, _described(error))
                continue
            if complaint:
                _log.warning("plugin %r in %s: %s", hook.plugin, event, complaint)
                notes.add(hook, complaint)
            elif returned is not None:
                value = returned
                if event == "pre_execute":
                    arguments["plan"] = returned
        return HookOutcome(value, tuple(notes.texts))

    def _load(self, candidate: discovery.Candidate) -> None:
        record = _Record(candidate.name, candidate.source)
        try:
            definition = candidate.load()
            if definition.register is None:
                if candidate.requested:
                    raise _no_plugin(candidate)
                self._strays.add(candidate.identity)
                return
            record.module = definition.module
            record.name = _attribute(definition.described_by, "PLUGIN_NAME") or candidate.name
            record.description = _attribute(definition.described_by, "PLUGIN_DESCRIPTION")
            record.version = _attribute(definition.described_by, "PLUGIN_VERSION")
            with self._lock:
                self._records.append(record)  # before register: hooks it adds from a thread of its own find it
            token = _registering.set(record)
            try:
                definition.register(self)
            finally:
                _registering.reset(token)
        except (Exception, SystemExit) as error:  # noqa: BLE001  a plugin may raise anything
            self._failed(record, error)

    def _failed(self, record: _Record, error: BaseException) -> None:
        _log.error("plugin %r (%s) could not be loaded", record.name, record.source, exc_info=error)
        text = "".join(traceback.format_exception(error))
        with self._lock:
            record.error = text
            if record not in self._records:
                self._records.append(record)
            # All or nothing: half a plugin does what nobody wrote.
            self._hooks = {
                event: tuple(hook for hook in hooks if hook.owner is not record) for event, hooks in self._hooks.items()
            }

    def _author(self, callback: Callable[..., Any]) -> _Record | None:
        module = getattr(callback, "__module__", None)
        return next((record for record in self._records if module and record.module == module), None)


def _no_plugin(candidate: discovery.Candidate) -> TypeError:
    return TypeError(f"{candidate.name} is no plugin: it has no function register(manager)")


def _check_event(event: str) -> None:
    if event not in HOOK_NAMES:
        raise ValueError(f"there is no hook {event!r}; the hooks are {', '.join(HOOK_NAMES)}")


def _complaint(event: str, returned: object, given: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Why what a callback returned is not used, if it is not."""
    if inspect.iscoroutine(returned):
        returned.close()
        return "an async function cannot be a hook; nothing of it was run"
    if event != "pre_execute":
        return ""
    if returned is None and "plan" in given and given["plan"] != arguments["plan"]:
        return "changed the plan in place and returned None; the change is ignored"
    if returned is not None and not isinstance(returned, dict):
        return f"returned {type(returned).__name__}, not a plan (dict); ignored"
    return ""


def _attribute(described_by: object, name: str) -> str:
    value = getattr(described_by, name, None)
    return "" if value is None else str(value)


def _text(error: BaseException) -> str:
    try:
        return str(error).strip()
    except Exception:  # noqa: BLE001  a plugin's own exception class may be broken too
        return ""


def _described(error: BaseException) -> str:
    text = _text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
