"""Sandbox 'none': no isolation, but a clean environment and nothing left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from shared.errors import SandboxError
from worker.process import CancelToken, Ended, ProcessLimits
from worker.sandbox import Bind, ThrowawayOverlay, View, create

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
DAEMON = "(setsid sh -c '(setsid sleep {0} >/dev/null 2>&1 &)' &) ; sleep 0.2"


def living(marker: str) -> list[int]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        if marker in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.info["pid"])
    return found


@pytest.fixture
def marker():
    number = f"97{os.getpid()}.{time.monotonic_ns() % 1_000_000}"
    yield number
    left = living(number)
    for pid in left:
        psutil.Process(pid).kill()
    assert not left, "processes survived"


@pytest.fixture
def run(tmp_path):
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    sandbox = create("none", scratch=tmp_path)

    def run(command, on_output=None, cancel=None, view=None, **limits):
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        limits = ProcessLimits(**{"timeout_s": 20.0, **limits})
        return sandbox.run(view or View(workspace), argv, limits, on_output, cancel)

    run.sandbox, run.workspace = sandbox, workspace
    return run


def test_says_that_it_isolates_nothing(run):
    report = run.sandbox.check()
    assert not report.isolated
    assert not report.shares_environments
    assert any("no isolation" in note for note in report.notes)
    assert run.sandbox.workspace_path(run.workspace) == str(run.workspace)


def test_environment_is_scrubbed(run, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_WORKER", "x")
    monkeypatch.setenv("PYTHONPATH", "/x")
    text = run("env", view=View(run.workspace, env={"MINE": "1"})).output.text
    assert "MINE=1" in text
    assert "SECRET" not in text
    assert "PYTHONPATH" not in text


def test_runs_in_the_workspace(run):
    (run.workspace / "sub").mkdir()
    assert run("pwd").output.text.strip() == str(run.workspace)
    assert run("pwd", view=View(run.workspace, cwd="sub")).output.text.strip() == str(run.workspace / "sub")


@pytest.mark.parametrize(
    ("command", "exit_code", "signal_name", "ended"),
    [
        ("exit 3", 3, None, Ended.EXITED),
        ("exit 139", 139, None, Ended.EXITED),
        ("kill -SEGV $$", None, "SIGSEGV", Ended.SIGNALLED),
        ("kill -KILL $$", None, "SIGKILL", Ended.SIGNALLED),
        ("kill -TERM $$", None, "SIGTERM", Ended.SIGNALLED),
    ],
)
def test_ends_as_the_command_did(run, command, exit_code, signal_name, ended):
    result = run(command)
    assert (result.exit_code, result.signal, result.ended) == (exit_code, signal_name, ended)
    assert result.argv == ("/bin/sh", "-c", command)


def test_missing_and_unexecutable_commands(run):
    result = run(["no-such-program"])
    assert (result.exit_code, result.ended) == (127, Ended.EXITED)
    assert "no-such-program: No such file" in result.output.text
    assert run(["/etc/passwd"]).exit_code == 126
    assert run("true", view=View(run.workspace, cwd="missing")).exit_code == 127


def test_a_daemon_does_not_survive_its_command(run, marker):
    assert run(DAEMON.format(marker) + "; exit 4").exit_code == 4
    assert not living(marker)


def test_a_daemon_does_not_survive_the_deadline(run, marker):
    result = run(DAEMON.format(marker) + f"; sleep {marker}", timeout_s=0.6)
    assert result.ended is Ended.TIMEOUT
    assert result.seconds < 1.5
    assert not living(marker)


def test_cancel_reaches_a_handler(run):
    cancel = CancelToken()
    threading.Timer(0.4, cancel.set, args=["asked to"]).start()
    result = run("trap 'echo cleaned; exit 5' TERM; while :; do sleep 0.02; done", cancel=cancel)
    assert (result.ended, result.exit_code, result.output.text) == (Ended.CANCELLED, 5, "cleaned\n")
    assert result.seconds < 1.0


def test_signals_the_worker_ignores_are_the_commands_again(run):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run("kill -INT $$; echo ignored").signal == "SIGINT"
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_killed_worker_leaves_nothing(run, marker):
    worker = subprocess.Popen(
        [sys.executable, "-c", f"""
import sys; sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from worker.process import ProcessLimits
from worker.sandbox import View, create
workspace = Path({str(run.workspace)!r})
sandbox = create("none", scratch=workspace)
sandbox.run(View(workspace), ["/bin/sh", "-c", {DAEMON.format(marker)!r} + "; sleep {marker}"], ProcessLimits())
"""],
    )  # fmt: skip
    until = time.monotonic() + 10
    while len(living(marker)) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(living(marker)) >= 2
    worker.kill()
    worker.wait()
    until = time.monotonic() + 3
    while living(marker) and time.monotonic() < until:
        time.sleep(0.01)
    assert not living(marker)


def test_refuses_what_it_cannot_show(run, tmp_path):
    with pytest.raises(SandboxError, match="cannot show"):
        run("true", view=View(run.workspace, binds=(ThrowawayOverlay(tmp_path, ".venv"),)))
    with pytest.raises(SandboxError, match="cannot show"):
        run("true", view=View(run.workspace, binds=(Bind(tmp_path, "/cache"),)))


def test_private_home_and_tmp(run, tmp_path):
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    text = run("echo $HOME $TMPDIR; touch $HOME/x", view=View(run.workspace, tmp=tmp)).output.text
    assert text.split() == [str(tmp / "home"), str(tmp)]
