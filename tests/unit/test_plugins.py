"""What plugins may rely on, and what they cannot break."""

from __future__ import annotations

import copy
import importlib.metadata
import logging
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from pathlib import Path

import pytest

import plugins
from plugins import HOOK_NAMES, PluginManager, PluginVeto
from plugins.discovery import OWN_FOLDER

EXAMPLE = """
PLUGIN_NAME = "my-plugin"
PLUGIN_DESCRIPTION = "Logs every execution"

def on_pre_execute(plan, **kwargs):
    print(f"Executing: {plan['name']}")
    return plan

def register(manager):
    manager.add_hook("pre_execute", on_pre_execute)
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "dropped"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def no_installed_plugins(monkeypatch):
    """What happens to be installed beside the tests is not their subject."""
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())


def write(folder: Path, name: str, code: str) -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(code))
    return path


def discovered(folder: Path, **options) -> PluginManager:
    manager = PluginManager()
    manager.discover(folder, **options)
    return manager


def named(folder: Path, file: str, name: str, body: str = "") -> Path:
    return write(folder, file, f"PLUGIN_NAME = {name!r}\n{textwrap.dedent(body)}\ndef register(manager): pass\n")


def raising(error: BaseException):
    def callback(**kwargs):
        raise error

    return callback


# The documented example


@pytest.mark.parametrize("signature", ["plan, **kwargs", "plan", "plan, /", "*, plan"])
def test_the_example_plugin_works_unchanged(folder, capsys, signature):
    write(folder, "my_plugin.py", EXAMPLE.replace("plan, **kwargs", signature))
    manager = discovered(folder)
    plan = {"name": "todo-api", "files": []}
    assert manager.hook("pre_execute", plan=plan) == plan
    assert capsys.readouterr().out == "Executing: todo-api\n"
    assert manager.list_plugins() == [("my-plugin", "Logs every execution")]


def test_a_plugin_is_described_by_its_module(folder):
    path = write(folder, "audit.py", 'PLUGIN_VERSION = (1, 2)\ndef register(m): m.add_hook("post_run", print)')
    (plugin,) = discovered(folder).plugins
    assert (plugin.name, plugin.description, plugin.version) == ("audit", "", "(1, 2)")
    assert (plugin.source, plugin.hooks, plugin.error) == (str(path), ("post_run",), "")


def test_register_plugin_names_the_plugin_that_calls_it_or_adds_one(folder):
    write(folder, "a.py", 'def register(manager): manager.register_plugin("alpha", "the first")')
    manager = discovered(folder)
    manager.register_plugin("inline")
    manager.register_plugin("inline", "made here")
    assert manager.list_plugins() == [("alpha", "the first"), ("inline", "made here")]


# Arguments and results


def test_each_callback_gets_only_what_it_takes():
    seen = {}
    manager = PluginManager()
    manager.add_hook("post_run", lambda project_dir, return_code: seen.update(old=(project_dir, return_code)))
    manager.add_hook("post_run", lambda project_dir, rc, **kwargs: seen.update(new=(project_dir, rc, kwargs)))
    manager.add_hook("post_run", lambda rc, /: seen.update(positional=rc))
    manager.add_hook("post_run", lambda: seen.update(nothing=True))
    manager.add_hook("post_run", partial(lambda label, return_code: seen.update({label: return_code}), "partial"))
    outcome = manager.fire("post_run", project_dir=Path("/p"), return_code=3)
    assert outcome.notes == ()
    assert seen == {
        "old": (Path("/p"), 3),
        "new": (Path("/p"), 3, {"return_code": 3}),
        "positional": 3,
        "nothing": True,
        "partial": 3,
    }


def test_rc_alone_is_understood_too():
    manager = PluginManager()
    manager.add_hook("post_run", lambda return_code: return_code)
    assert manager.hook("post_run", project_dir=Path("/p"), rc=7) == 7


def test_a_decorated_callback_is_given_what_it_and_the_function_inside_take():
    def decorated(function):
        @wraps(function)
        def wrapper(result, **kwargs):
            return result, function(**kwargs)

        return wrapper

    manager = PluginManager()
    manager.add_hook("post_execute", decorated(lambda plan: plan))
    assert manager.hook("post_execute", plan={"name": "x"}, result={"ok": 1}) == ({"ok": 1}, {"name": "x"})


def test_a_decorator_that_passes_everything_on_is_given_only_what_the_function_inside_takes():
    def transparent(function):
        @wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    manager = PluginManager()
    manager.add_hook("post_run", transparent(lambda project_dir, return_code: return_code))
    assert manager.fire("post_run", project_dir=Path(), return_code=4) == plugins.HookOutcome(4)


def test_hook_returns_the_last_result_that_is_not_none():
    manager = PluginManager()
    for value in ("first", "second", None):
        manager.add_hook("post_execute", lambda value=value: value)
    assert manager.hook("post_execute", plan={}, result={}) == "second"
    assert manager.hook("pre_run", project_dir=Path()) is None


def test_a_plan_is_chained_through_the_callbacks():
    seen = []
    manager = PluginManager()
    manager.add_hook("pre_execute", lambda plan: {**plan, "deps": ["a"]})
    manager.add_hook("pre_execute", lambda plan: seen.append(plan))
    manager.add_hook("pre_execute", lambda plan: {**plan, "deps": [*plan["deps"], "b"]})
    assert manager.hook("pre_execute", plan={"name": "x"}) == {"name": "x", "deps": ["a", "b"]}
    assert seen == [{"name": "x", "deps": ["a"]}]


def test_no_returned_plan_is_none():
    manager = PluginManager()
    manager.add_hook("pre_execute", lambda plan: None)
    assert manager.hook("pre_execute", plan={"name": "x"}) is None


def test_a_change_in_place_is_seen_by_nobody_but_noted():
    plan = {"name": "x", "deps": []}
    before = copy.deepcopy(plan)
    seen = []
    manager = PluginManager()

    def careless(plan):
        plan["deps"].append("evil")

    manager.add_hook("pre_execute", careless)
    manager.add_hook("pre_execute", lambda plan: seen.append(plan))
    outcome = manager.fire("pre_execute", plan=plan)
    assert plan == before
    assert seen == [before]
    assert outcome.value is None
    (note,) = outcome.notes
    assert "changed the plan in place" in note


def test_a_plan_changed_in_place_and_returned_counts():
    plan = {"deps": []}
    manager = PluginManager()
    manager.add_hook("pre_execute", lambda plan: plan["deps"].append("a") or plan)
    assert manager.fire("pre_execute", plan=plan) == plugins.HookOutcome({"deps": ["a"]})
    assert plan == {"deps": []}


def test_a_plugin_cannot_change_a_plan_it_has_handed_over():
    kept = []
    manager = PluginManager()
    manager.add_hook("pre_execute", lambda plan: kept.append(plan) or plan)
    value = manager.hook("pre_execute", plan={"deps": []})
    kept[0]["deps"].append("evil")
    assert value == {"deps": []}


def test_a_result_cannot_be_changed_behind_our_back():
    result = {"stages": [{"name": "run"}]}
    manager = PluginManager()
    manager.add_hook("post_execute", lambda result: result["stages"].clear())
    manager.fire("post_execute", plan={}, result=result)
    assert result == {"stages": [{"name": "run"}]}


@pytest.mark.parametrize("wrong", [["a"], "plan", 0, True])
def test_a_returned_plan_that_is_no_dict_is_noted_and_ignored(wrong):
    manager = PluginManager()
    manager.add_hook("pre_execute", lambda plan: {"name": "good"})

    def bad(plan):
        return wrong

    manager.add_hook("pre_execute", bad)
    outcome = manager.fire("pre_execute", plan={"name": "x"})
    assert outcome.value == {"name": "good"}
    (note,) = outcome.notes
    assert note.endswith(f"pre_execute: returned {type(wrong).__name__}, not a plan (dict); ignored")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("event", HOOK_NAMES)
def test_an_async_callback_is_noted(event):
    async def late(**kwargs):
        return {}

    manager = PluginManager()
    manager.add_hook(event, late)
    outcome = manager.fire(event, plan={})
    assert outcome.value is None
    assert "async" in outcome.notes[0]


# Veto


@pytest.mark.parametrize("event", ["pre_execute", "pre_run"])
@pytest.mark.parametrize("error", ["PermissionError", "PluginVeto"])
def test_a_veto_comes_out_with_plugin_and_reason(folder, event, error):
    write(folder, "0_broken.py", f"def f(): 1 / 0\ndef register(m): m.add_hook({event!r}, f)")
    write(
        folder,
        "guard.py",
        f"""
        from plugins import PluginVeto
        def refuse(**kwargs):
            raise {error}("no rm -rf here")
        def register(manager):
            manager.add_hook({event!r}, refuse)
        """,
    )
    write(folder, "later.py", f"calls = []\ndef f(): calls.append(1)\ndef register(m): m.add_hook({event!r}, f)")
    manager = discovered(folder)
    with pytest.raises(PluginVeto, match=r"^no rm -rf here$") as caught:
        manager.hook(event, plan={"name": "x"}, project_dir=Path())
    assert (caught.value.plugin, caught.value.reason) == ("guard", "no rm -rf here")
    assert caught.value.notes == (f"plugin '0_broken' {event}: ZeroDivisionError: division by zero",)
    (later,) = [m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == str(folder / "later.py")]
    assert later.calls == []


def test_a_veto_without_a_reason_says_so():
    manager = PluginManager()
    manager.add_hook("pre_run", raising(PluginVeto()))
    with pytest.raises(PluginVeto, match="no reason given"):
        manager.fire("pre_run", project_dir=Path())


@pytest.mark.parametrize("event", ["post_execute", "post_run"])
def test_afterwards_there_is_nothing_to_veto(event):
    manager = PluginManager()
    manager.add_hook(event, raising(PluginVeto("too late")))
    assert manager.fire(event).notes[0].endswith(f"{event}: PluginVeto: too late")


# Faults


class UnprintableError(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize("event", HOOK_NAMES)
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("boom"), "ValueError: boom"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyError(), "KeyError"),
        (UnprintableError(), "UnprintableError"),
        (ValueError("x" * 5000), "ValueError: " + "x" * 100),
    ],
    ids=["value", "exit", "empty", "unprintable", "huge"],
)
def test_a_fault_is_noted_and_logged_and_the_others_go_on(caplog, event, error, text):
    manager = PluginManager()
    called = []
    manager.add_hook(event, raising(error))
    manager.add_hook(event, lambda: called.append(1))
    with caplog.at_level(logging.INFO, "orchestrator.plugins"):
        (note,) = manager.fire(event, plan={}).notes
    assert f"{event}: {text}" in note
    assert len(note) <= 500
    assert called == [1]
    (record,) = [record for record in caplog.records if record.name == "orchestrator.plugins"]
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_a_note_reads_well(folder):
    write(folder, "audit.py", "def f(plan): raise ValueError('boom')\ndef register(m): m.add_hook('pre_execute', f)")
    outcome = discovered(folder).fire("pre_execute", plan={})
    assert outcome.notes == ("plugin 'audit' pre_execute: ValueError: boom",)


def test_a_callback_that_needs_what_the_hook_does_not_have_is_a_fault():
    manager = PluginManager()
    manager.add_hook("pre_run", lambda workspace: None)
    assert "TypeError" in manager.fire("pre_run", project_dir=Path()).notes[0]


def test_an_interrupt_passes_through():
    manager = PluginManager()
    manager.add_hook("pre_run", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        manager.fire("pre_run", project_dir=Path())


def test_unknown_hooks_are_refused_by_name():
    manager = PluginManager()
    for act in (lambda: manager.add_hook("pre_build", print), lambda: manager.fire("pre_build")):
        with pytest.raises(ValueError, match=r"'pre_build'.*pre_execute, post_execute, pre_run, post_run"):
            act()
    with pytest.raises(TypeError, match="str"):
        manager.add_hook("pre_run", "print")


def test_notes_belong_to_the_call_that_caused_them():
    together = threading.Barrier(8)
    manager = PluginManager()

    def fail(plan):
        together.wait(10)
        raise ValueError(plan["name"])

    manager.add_hook("pre_execute", fail)
    manager.add_hook("pre_execute", lambda plan: {**plan, "seen": plan["name"]})

    def build(number):
        return [manager.fire("pre_execute", plan={"name": f"build-{number}"}) for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        for number, outcomes in enumerate(pool.map(build, range(8))):
            for outcome in outcomes:
                assert outcome.value == {"name": f"build-{number}", "seen": f"build-{number}"}
                assert len(outcome.notes) == 1
                assert outcome.notes[0].endswith(f"ValueError: build-{number}")


def test_one_veto_raised_by_many_threads_is_many():
    together = threading.Barrier(8)
    manager = PluginManager()
    manager.add_hook("pre_run", lambda project_dir: 1 / int(project_dir.name))  # a note for build 0 only
    shared = PluginVeto("closed")

    def refuse():
        together.wait(10)
        raise shared

    manager.add_hook("pre_run", refuse)

    def build(number):
        with pytest.raises(PluginVeto) as caught:
            manager.fire("pre_run", project_dir=Path(str(number)))
        return len(caught.value.notes)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(build, range(8))) == [1, 0, 0, 0, 0, 0, 0, 0]


# Loading


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError"),
        ("def register(:", "SyntaxError"),
        ("raise SystemExit('bye')", "SystemExit: bye"),
        ("def register(m):\n m.add_hook('pre_run', print)\n m.add_hook('pre_build', print)", "pre_build"),
        ("def register(): pass", "TypeError"),
    ],
    ids=["import", "syntax", "exit", "unknown-hook", "signature"],
)
def test_a_plugin_that_cannot_be_loaded_is_recorded_and_stops_nothing(folder, caplog, code, text):
    write(folder, "bad.py", code)
    write(folder, "good.py", "def register(manager): manager.add_hook('pre_run', lambda: 'good')")
    before = set(sys.modules)
    manager = discovered(folder)
    bad, good = manager.plugins
    assert (bad.name, bad.hooks, good.name, good.error) == ("bad", (), "good", "")
    assert "Traceback" in bad.error
    assert text in bad.error
    assert manager.list_plugins() == [("good", "")]
    assert manager.hook("pre_run", project_dir=Path()) == "good"
    assert any(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)
    if "register" not in code:
        assert not [name for name in set(sys.modules) - before if "_bad_" in name]


def test_only_modules_with_register_are_plugins(folder):
    write(folder, "helper.py", "VALUE = 1")
    write(folder, "_private.py", "def register(manager): 1 / 0")
    write(folder, ".#lock.py", "def register(manager): 1 / 0")
    write(folder, "notes.txt", "not Python")
    (folder / "package.py").mkdir()
    assert discovered(folder).plugins == ()


def test_the_order_is_stable(folder):
    for name in ("c", "a", "Z", "b", "10", "9"):
        write(folder, f"{name}.py", "def register(manager): pass")
    write(folder, "_y.py", "def register(manager): pass")
    write(folder, "_x.py", "def register(manager): pass")
    names = [name for name, _ in discovered(folder, enabled=["_y", "a", "_x"]).list_plugins()]
    assert names == ["10", "9", "Z", "a", "b", "c", "_y", "_x"]


def test_a_file_is_loaded_once_however_it_is_reached(folder, tmp_path, monkeypatch):
    count = tmp_path / "count"
    write(folder, "audit.py", f"open({str(count)!r}, 'a').write('x')\ndef register(manager): pass")
    (folder / "link.py").symlink_to("audit.py")
    other = tmp_path / "other"
    other.symlink_to(folder)
    monkeypatch.syspath_prepend(tmp_path)
    manager = discovered(folder, enabled=["audit", "audit", "dropped.audit"])
    manager.discover(folder)
    manager.discover(other)
    monkeypatch.chdir(tmp_path)
    manager.discover(Path("dropped"))
    assert count.read_text() == "x"
    assert [name for name, _ in manager.list_plugins()] == ["audit"]


def test_a_failed_plugin_is_not_tried_again(folder):
    write(folder, "bad.py", "1 / 0")
    manager = discovered(folder)
    manager.discover(folder)
    assert len(manager.plugins) == 1


def test_files_of_one_name_in_two_folders_are_two_modules(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for number, place in enumerate((folder, other)):
        code = f"me, seen = {number}, []\ndef register(m): m.add_hook('pre_run', lambda: seen.append(me))"
        write(place, "json.py", code)
    manager = discovered(folder)
    manager.discover(other)
    manager.fire("pre_run", project_dir=Path())
    modules = [module for name, module in sys.modules.items() if name.startswith("orchestrator_plugin_json_")]
    ours = [module for module in modules if str(tmp_path) in module.__file__]
    assert sorted((module.me, module.seen) for module in ours) == [(0, [0]), (1, [1])]
    assert hasattr(sys.modules["json"], "loads")


def test_a_module_is_registered_while_it_loads(folder):
    write(
        folder,
        "shapes.py",
        """
        from __future__ import annotations
        import dataclasses, sys
        @dataclasses.dataclass
        class Rule:
            name: str
            known: dataclasses.KW_ONLY
        assert sys.modules[__name__].Rule is Rule
        def register(manager): pass
        """,
    )
    (plugin,) = discovered(folder).plugins
    assert plugin.error == ""


def test_sys_path_is_left_alone(folder, tmp_path):
    named(folder, "a.py", "a", "import sys\nPLUGIN_DESCRIPTION = repr(sys.path)")
    write(folder, "bad.py", "1 / 0")
    before = list(sys.path)
    (_, during), *_ = discovered(folder, enabled=["a", "no_such_module"]).list_plugins()
    assert during == repr(before)
    assert sys.path == before


def test_a_plugin_sees_the_veto_the_manager_knows(folder):
    named(folder, "a.py", "a", "import plugins\nPLUGIN_VERSION = id(plugins.PluginVeto)")
    assert discovered(folder).plugins[0].version == str(id(PluginVeto))


def test_a_hook_added_later_still_belongs_to_its_plugin(folder):
    write(
        folder,
        "late.py",
        """
        import threading
        def fail(): raise ValueError("x")
        def register(manager):
            manager.add_hook("pre_execute", lambda plan: manager.add_hook("pre_run", fail))
            thread = threading.Thread(target=manager.add_hook, args=("post_run", fail))
            thread.start(); thread.join()
        """,
    )
    manager = discovered(folder)
    assert manager.plugins[0].hooks == ("pre_execute", "post_run")
    manager.fire("pre_execute", plan={})
    assert manager.fire("pre_run").notes == ("plugin 'late' pre_run: ValueError: x",)
    assert manager.plugins[0].hooks == ("pre_execute", "pre_run", "post_run")


def test_a_plugin_may_discover_others(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    named(other, "inner.py", "inner")
    write(
        folder,
        "outer.py",
        f"""
        from pathlib import Path
        def register(manager):
            manager.discover(Path({str(other)!r}))
            manager.add_hook("pre_run", print)
        """,
    )
    assert [(p.name, p.hooks) for p in discovered(folder).plugins] == [("outer", ("pre_run",)), ("inner", ())]


def test_a_missing_folder_is_a_warning_and_a_broken_one_a_failure(tmp_path, caplog):
    assert discovered(tmp_path / "nowhere").plugins == ()
    assert "nowhere does not exist" in caplog.text
    (tmp_path / "file").write_text("")
    (plugin,) = discovered(tmp_path / "file").plugins
    assert "NotADirectoryError" in plugin.error


def test_a_dangling_link_is_a_failure(folder):
    (folder / "audit.py").symlink_to("gone.py")
    (folder / "loop.py").symlink_to("loop.py")
    assert [(found.name, bool(found.error)) for found in discovered(folder).plugins] == [
        ("audit", True),
        ("loop", True),
    ]


# Named modules and installed packages


def test_enabled_modules_that_are_no_plugins_are_failures(folder):
    write(folder, "helper.py", "")
    names = ["helper", "json.tool", "no_such_module", "no_such.child", "", ".audit", "../x"]
    manager = discovered(folder, enabled=names)
    assert [plugin.name for plugin in manager.plugins] == names
    assert all("Traceback" in plugin.error or "is no plugin" in plugin.error for plugin in manager.plugins)


def test_an_enabled_module_may_be_anywhere_importable(folder, tmp_path, monkeypatch):
    package = tmp_path / "acme_policy"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "names.py").write_text("NAME = 'acme'")
    write(package, "audit.py", "from .names import NAME as PLUGIN_NAME\ndef register(manager): pass")
    monkeypatch.syspath_prepend(tmp_path)
    (plugin,) = discovered(folder, enabled=["acme_policy.audit"]).plugins
    assert (plugin.name, plugin.source, plugin.error) == ("acme", str(package / "audit.py"), "")


def test_a_plugin_folder_beats_the_import_path(folder, tmp_path, monkeypatch):
    named(tmp_path, "_audit.py", "impostor")
    named(folder, "_audit.py", "ours")
    monkeypatch.syspath_prepend(tmp_path)
    assert discovered(folder, enabled=["_audit"]).list_plugins() == [("ours", "")]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes a distribution with the given entry points importable, and the real look-up find it."""
    monkeypatch.undo()
    site = tmp_path / "site"

    def make(name: str, entry_points: str) -> Path:
        info = site / f"{name}-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[orchestrator_toolkit.plugins]\n{entry_points}\n")
        return site

    monkeypatch.syspath_prepend(site)
    return make


def test_installed_packages_bring_plugins_in_order_and_once(folder, install):
    points = ["zeta = acme_zeta", "alpha = acme_alpha:setup", "again = acme_zeta:register", "gone = acme_nowhere"]
    site = install("acme", "\n".join(points))
    write(site, "acme_zeta.py", "PLUGIN_NAME = 'Z'\ndef register(manager): manager.add_hook('pre_run', print)")
    write(site, "acme_alpha.py", "PLUGIN_DESCRIPTION = 'first'\ndef setup(m): m.add_hook('post_run', print)")
    named(folder, "local.py", "local")
    found = discovered(folder).plugins
    assert [(plugin.name, plugin.hooks) for plugin in found] == [
        ("local", ()),
        ("Z", ("pre_run",)),
        ("alpha", ("post_run",)),
        ("gone", ()),
    ]
    assert [plugin.source for plugin in found][1:3] == ["acme 1.5 (entry point again)", "acme 1.5 (entry point alpha)"]
    assert found[2].description == "first"
    assert "acme_nowhere" in found[3].error


def test_damaged_metadata_is_one_failure(folder, monkeypatch):
    def damaged(**_):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    monkeypatch.setattr(importlib.metadata, "entry_points", damaged)
    named(folder, "local.py", "local")
    assert [(p.name, bool(p.error)) for p in discovered(folder).plugins] == [("local", False), ("entry points", True)]


# Ours and theirs


def test_a_folder_called_plugins_in_the_current_directory_is_not_ours(tmp_path, monkeypatch):
    theirs = tmp_path / "plugins"
    theirs.mkdir()
    named(theirs, "__init__.py", "evil")
    named(theirs, "evil.py", "evil")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    manager = PluginManager()
    manager.discover(enabled=["plugins.evil"])
    assert Path(plugins.__file__).parent == OWN_FOLDER
    assert "evil" not in dict(manager.list_plugins())
    assert not any(str(theirs) in plugin.source for plugin in manager.plugins)


def test_ours_are_no_plugins_and_load_without_a_fault():
    manager = PluginManager()
    manager.discover(enabled=["manager"])
    assert [plugin.name for plugin in manager.plugins if plugin.error] == ["manager"]
    assert not {"discovery", "manager"} & set(dict(manager.list_plugins()))
    again = tuple(f"orchestrator_plugin_{name}_" for name in ("manager", "discovery", "configured"))
    assert not [name for name in sys.modules if name.startswith(again)]


def test_importing_plugins_loads_nothing_heavy():
    code = "import sys, plugins; print(sorted({'pydantic', 'celery', 'importlib.metadata', 'rich'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(OWN_FOLDER.parent)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"
