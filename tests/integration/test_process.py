"""One command to its end: every way it can end, and that nothing is left of it."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from shared.errors import SandboxError
from worker.process import CancelToken, Ended, ProcessLimits, ProcessResult, run_process

pytestmark = pytest.mark.integration

ENV = {"PATH": os.environ["PATH"]}


def run(command: str, on_output=None, cancel=None, **limits) -> ProcessResult:
    return run_process(
        ["/bin/sh", "-c", command], env=ENV, limits=ProcessLimits(**{"timeout_s": 30.0, **limits}),
        on_output=on_output, cancel=cancel,
    )  # fmt: skip


def python(code: str, on_output=None, **limits) -> ProcessResult:
    return run_process(
        [sys.executable, "-I", "-S", "-c", code], env=ENV, limits=ProcessLimits(**{"timeout_s": 30.0, **limits}),
        on_output=on_output,
    )  # fmt: skip


def living(marker: str) -> list[int]:
    """Processes with `marker` among their arguments, zombies aside."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        if marker in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.info["pid"])
    return found


@pytest.fixture
def marker():
    """A number of seconds for `sleep` that no other process on the machine sleeps; none may be left."""
    number = f"98{os.getpid()}.{time.monotonic_ns() % 1_000_000}"
    yield number
    left = living(number)
    for pid in left:
        psutil.Process(pid).kill()
    assert not left, "processes survived"


@pytest.fixture(autouse=True)
def no_leaks():
    """Neither descriptors nor zombies stay behind."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not psutil.Process().children()


class TestEnd:
    def test_exit_code(self):
        result = run("exit 7")
        assert (result.exit_code, result.signal, result.ended, result.ok) == (7, None, Ended.EXITED, False)

    def test_signal_is_not_an_exit_code(self):
        result = run("kill -SEGV $$")
        assert (result.exit_code, result.signal, result.ended) == (None, "SIGSEGV", Ended.SIGNALLED)

    def test_an_exit_code_past_128_is_not_a_signal(self):
        result = run("exit 139")
        assert (result.exit_code, result.signal, result.ended) == (139, None, Ended.EXITED)

    @pytest.mark.parametrize("argv", [["/nonexistent/program"], ["/etc/passwd"], ["with\0nul"]])
    def test_what_cannot_start_is_a_fault_of_the_farm(self, argv):
        with pytest.raises(SandboxError, match="cannot start"):
            run_process(argv, env={}, limits=ProcessLimits())

    def test_environment_is_exactly_what_was_given(self, monkeypatch):
        monkeypatch.setenv("SECRET_OF_THE_WORKER", "x")
        result = run_process(["/usr/bin/env"], env={"ONE": "1"}, limits=ProcessLimits(timeout_s=10))
        assert result.output.text == "ONE=1\n"

    def test_standard_input_is_empty(self):
        assert run("cat; echo end").output.text == "end\n"

    def test_own_session(self):
        assert run("ps -o sid= -p $$").output.text.strip() != str(os.getsid(0))

    def test_peak_memory_is_seen(self):
        result = python("x = bytearray(80_000_000); import time; time.sleep(1)")
        assert result.peak_memory_bytes is not None
        assert 80_000_000 < result.peak_memory_bytes < 160_000_000


class TestDeadlines:
    def test_deadline(self, marker):
        result = run(f"sleep {marker}", timeout_s=0.3)
        assert result.ended is Ended.TIMEOUT
        assert 0.3 <= result.seconds < 1.0

    def test_deadline_holds_for_a_flood(self):
        result = run("yes", timeout_s=0.3)
        assert result.ended is Ended.TIMEOUT
        assert result.seconds < 1.0
        assert result.output.dropped_bytes > 0

    def test_deadline_holds_for_closed_output(self, marker):
        result = run(f"exec >&- 2>&-; sleep {marker}", timeout_s=0.3)
        assert result.ended is Ended.TIMEOUT
        assert result.seconds < 1.0

    def test_idle_deadline(self, marker):
        result = run(f"echo a; sleep 0.3; echo b; sleep {marker}", idle_timeout_s=0.6)
        assert result.ended is Ended.IDLE
        assert 0.9 <= result.seconds < 1.8
        assert result.output.text == "a\nb\n"

    def test_output_keeps_the_idle_deadline_away(self):
        result = run("for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done", idle_timeout_s=0.4)
        assert result.ended is Ended.EXITED

    def test_a_grandchild_that_holds_the_pipe_is_not_waited_for(self, marker):
        result = run(f"sleep {marker} & echo started")
        assert result.ended is Ended.EXITED
        assert result.seconds < 1.0
        assert result.output.text == "started\n"


class TestEnding:
    def test_a_handler_of_term_may_clean_up(self):
        result = run("trap 'echo cleaned; exit 5' TERM; while :; do sleep 0.02; done", timeout_s=0.3)
        assert result.ended is Ended.TIMEOUT
        assert (result.exit_code, result.output.text) == (5, "cleaned\n")

    def test_a_shell_does_not_take_the_program_it_waits_for_with_it(self):
        program = (
            "import signal, sys, time\n"
            "def end(*_): print('cleaned', flush=True); sys.exit()\n"
            "signal.signal(signal.SIGTERM, end)\n"
            "print('ready', flush=True)\n"
            "time.sleep(60)"
        )
        result = run(f'{sys.executable} -I -S -c "{program}" | cat', timeout_s=0.5)
        assert result.output.text == "ready\ncleaned\n"
        assert result.seconds < 1.5

    def test_a_handler_that_does_not_end_is_killed_after_the_grace(self):
        result = run("trap 'echo no' TERM; while :; do sleep 0.02; done", timeout_s=0.3, term_grace_s=0.5)
        assert (result.ended, result.signal) == (Ended.TIMEOUT, "SIGKILL")
        assert 0.8 <= result.seconds < 1.6
        assert "no\n" in result.output.text

    def test_ignoring_term_gains_no_time(self, marker):
        result = run(f"trap '' TERM; sleep {marker}", timeout_s=0.3)
        assert result.signal == "SIGKILL"
        assert result.seconds < 1.0

    def test_cancel_is_noticed_at_once(self, marker):
        cancel = CancelToken()
        threading.Timer(0.3, cancel.set, args=["asked to"]).start()
        result = run(f"sleep {marker}", cancel=cancel)
        assert (result.ended, cancel.reason) == (Ended.CANCELLED, "asked to")
        assert 0.3 <= result.seconds < 0.45
        del cancel

    def test_one_token_cancels_many(self, marker):
        cancel = CancelToken()
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(run, f"sleep {marker}", cancel=cancel) for _ in range(4)]
            time.sleep(0.2)
            cancel.set("all")
            assert {future.result(timeout=2).ended for future in futures} == {Ended.CANCELLED}
        del cancel

    def test_cancelled_before_it_starts(self, tmp_path):
        cancel = CancelToken()
        cancel.set("early")
        assert run(f"touch {tmp_path}/ran", cancel=cancel).ended is Ended.CANCELLED
        assert not (tmp_path / "ran").exists()
        del cancel

    def test_children_with_sessions_of_their_own_are_killed_with_it(self, marker):
        result = run(f"setsid sleep {marker} & setsid sleep {marker} & sleep {marker}", timeout_s=0.3)
        assert result.ended is Ended.TIMEOUT

    def test_an_error_of_the_listener_leaves_nothing(self, marker):
        def fail(stream: str, chunk: bytes) -> None:
            raise ConnectionError("broker gone")

        with pytest.raises(ConnectionError):
            run(f"echo x; sleep {marker}", on_output=fail)


class TestOutput:
    def test_100_mb_are_counted_and_not_kept(self):
        before = psutil.Process().memory_info().rss
        chunks: list[tuple[str, bytes]] = []
        result = python(
            "import sys\nfor _ in range(1000): sys.stdout.write('é' * 50_000)", output_bytes=100_001,
            on_output=lambda *chunk: chunks.append(chunk),
        )  # fmt: skip
        assert result.exit_code == 0
        assert result.output.total_bytes == 100_000_000
        kept = len(result.output.head.encode()) + len(result.output.tail.encode())
        assert 99_990 <= kept <= 100_001
        assert result.output.dropped_bytes == 100_000_000 - kept
        assert set(result.output.head + result.output.tail) == {"é"}, "no character may be cut"
        assert b"".join(chunk for _, chunk in chunks).decode() == result.output.text
        assert len(chunks) < 20
        assert psutil.Process().memory_info().rss - before < 20_000_000

    def test_what_was_said_live_and_at_the_end_is_the_whole_output(self):
        chunks: list[tuple[str, bytes]] = []
        result = run("seq 1 5000; echo err >&2", output_bytes=1_000, on_output=lambda *chunk: chunks.append(chunk))
        assert [stream for stream, _ in chunks].count("note") == 1
        assert b"".join(chunk for _, chunk in chunks).decode() == result.output.text

    def test_nothing_is_dropped_at_exactly_the_limit(self):
        result = run("printf 1234567890", output_bytes=10)
        assert (result.output.text, result.output.dropped_bytes) == ("1234567890", 0)

    def test_invalid_utf8_and_cut_characters(self):
        chunks: list[bytes] = []
        command = r"printf 'a\377b\303'; sleep 0.2; printf '\251\360\237'"
        result = run(command, on_output=lambda _, chunk: chunks.append(chunk))
        assert chunks[0] == b"a\xffb"
        assert result.output.text == "a\ufffdbé\ufffd"

    def test_streams_are_named(self):
        chunks: list[tuple[str, bytes]] = []
        run("echo o; echo e >&2", on_output=lambda *chunk: chunks.append(chunk))
        assert sorted(chunks) == [("stderr", b"e\n"), ("stdout", b"o\n")]

    def test_live_within_a_moment(self):
        seen: list[float] = []
        begun = time.monotonic()
        run("echo a; sleep 0.6", on_output=lambda *_: seen.append(time.monotonic() - begun))
        assert seen[0] < 0.3

    def test_a_dripper_does_not_make_an_event_a_drop(self):
        chunks: list[bytes] = []
        code = "import sys, time\nfor i in range(1500):\n sys.stdout.write('.'); sys.stdout.flush(); time.sleep(0.001)"
        python(code, on_output=lambda _, chunk: chunks.append(chunk))
        assert sum(map(len, chunks)) == 1500
        assert len(chunks) < 40


def test_eight_at_once(marker):
    def one(number: int) -> ProcessResult:
        return run(f"sleep {marker} & seq 1 20000; exit {number}")

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(32)))
    assert [result.exit_code for result in results] == list(range(32))
    assert {result.output.total_bytes for result in results} == {108_894}


def test_a_process_costs_little():
    run("true")
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        run_process(["/bin/true"], env={}, limits=ProcessLimits())
        times.append(time.perf_counter() - begun)
    assert sorted(times)[10] < 0.010


def test_paths_are_not_searched_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "tool").write_text("#!/bin/sh\necho hijacked\n")
    (tmp_path / "tool").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SandboxError):
        run_process(["tool"], env={"PATH": "/usr/bin"}, limits=ProcessLimits())
    assert Path.cwd() == tmp_path
