"""The bubblewrap boundary, tried from the inside: what a build can see, reach, change and leave behind."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from shared.errors import ConfigError, SandboxError
from worker.process import CancelToken, Ended, ProcessLimits, run_process
from worker.sandbox import Bind, Overlay, ThrowawayOverlay, View, create
from worker.sandbox.bubblewrap import Bubblewrap, find_bwrap

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is Linux only"),
]

REPOSITORY = Path(__file__).resolve().parents[2]
DAEMON = "(setsid sh -c '(setsid sleep {0} >/dev/null 2>&1 &)' &) ; sleep 0.2"


def living(marker: str) -> list[int]:
    """Processes with `marker` somewhere in their arguments (bubblewrap's own too), zombies aside."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        if marker in " ".join(process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.info["pid"])
    return found


@pytest.fixture
def marker():
    number = f"96{os.getpid()}.{time.monotonic_ns() % 1_000_000}"
    yield number
    left = living(number)
    for pid in left:
        psutil.Process(pid).kill()
    assert not left, "processes survived"


@pytest.fixture(autouse=True)
def no_leaks():
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not psutil.Process().children()


def _sleeping(marker: str) -> bool:
    """Whether the daemon and the program itself are both there."""
    found = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    return found.count(["sleep", marker]) >= 2


class Box:
    """A sandbox around one workspace."""

    def __init__(self, folder: Path, **options) -> None:
        self.workspace = folder / "workspace"
        self.workspace.mkdir(exist_ok=True)
        self.sandbox = create("bubblewrap", scratch=folder / "scratch", **options)

    def run(self, command, on_output=None, cancel=None, *, limits=None, **view):
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        limits = ProcessLimits(**{"timeout_s": 20.0, **(limits or {})})
        return self.sandbox.run(View(self.workspace, **view), argv, limits, on_output, cancel)

    def text(self, command, **view) -> str:
        return self.run(command, **view).output.text.strip()


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path)


class TestVerdict:
    @pytest.mark.parametrize(
        ("command", "exit_code", "signal_name", "ended"),
        [
            ("true", 0, None, Ended.EXITED),
            ("exit 1", 1, None, Ended.EXITED),
            ("exit 127", 127, None, Ended.EXITED),
            ("exit 200", 200, None, Ended.EXITED),
            ("kill -SEGV $$", 139, "SIGSEGV", Ended.SIGNALLED),
            ("kill -KILL $$", 137, "SIGKILL", Ended.SIGNALLED),
        ],
    )
    def test_ends_as_the_command_did(self, box, command, exit_code, signal_name, ended):
        result = box.run(command)
        assert (result.exit_code, result.signal, result.ended) == (exit_code, signal_name, ended)
        assert result.argv == ("/bin/sh", "-c", command)

    def test_a_missing_command_is_the_users(self, box):
        chunks: list[tuple[str, bytes]] = []
        result = box.run(["no-such-program"], lambda *chunk: chunks.append(chunk))
        assert (result.exit_code, result.ended) == (127, Ended.EXITED)
        assert "no-such-program: not found" in result.output.text
        assert chunks == [("stderr", result.output.text.encode())]

    def test_a_command_that_cannot_be_executed_is_the_users(self, box):
        (box.workspace / "tool").write_text("#!/bin/sh\n")
        assert box.run(["./tool"]).exit_code == 126
        (box.workspace / "tool").chmod(0o755)
        assert box.run(["./tool"]).exit_code == 0

    @pytest.mark.parametrize("argv", [["/bin/echo", "x" * 140_000], ["/bin/echo", *["x" * 100_000] * 20]])
    def test_arguments_that_are_too_long_are_the_users(self, box, argv):
        result = box.run(argv)
        assert result.exit_code == 126
        assert "use a file" in result.output.text
        assert box.run(["/bin/true", "x" * 131_071, *["x" * 100_000] * 13]).exit_code == 0

    def test_a_program_cannot_pass_for_a_fault_of_bubblewrap(self, box):
        chunks: list[bytes] = []
        result = box.run("echo 'bwrap: no space' >&2; exit 1", lambda _, chunk: chunks.append(chunk))
        assert (result.exit_code, result.output.text) == (1, "bwrap: no space\n")
        assert chunks == [b"bwrap: no space\n"]

    def test_a_fault_of_bubblewrap_is_the_farms(self, box, tmp_path):
        chunks: list[bytes] = []
        with pytest.raises(SandboxError, match=r"could not be set up.*/nonexistent"):
            box.run("true", lambda _, chunk: chunks.append(chunk), binds=(Bind(Path("/nonexistent"), "/data"),))
        assert not chunks
        with pytest.raises(SandboxError, match="cannot start"):
            Bubblewrap(scratch=tmp_path, bwrap=tmp_path / "missing").run(View(box.workspace), ["true"], ProcessLimits())

    def test_a_working_directory_that_is_not_one(self, box):
        (box.workspace / "link").symlink_to("/usr")
        assert box.run("true", cwd="missing").exit_code == 126
        assert "symbolic link" in box.run("true", cwd="link").output.text
        assert box.run("true", cwd="../..").exit_code == 126

    def test_an_unknown_sandbox_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match="'chroot'"):
            create("chroot", scratch=tmp_path)


class TestSight:
    def test_the_project_is_at_one_path(self, box):
        (box.workspace / "sub").mkdir()
        assert box.sandbox.workspace_path(box.workspace) == "/workspace"
        assert box.text("pwd; echo x > /workspace/written") == "/workspace"
        assert box.text("pwd", cwd="sub") == "/workspace/sub"
        assert (box.workspace / "written").exists()

    def test_home_and_state_are_not_there(self, box, tmp_path):
        home = Path.home()
        assert box.run(["/bin/ls", str(home)]).exit_code != 0
        assert box.run(["/bin/ls", str(REPOSITORY / "worker")]).exit_code != 0
        assert box.run(["/bin/ls", str(tmp_path)]).exit_code != 0
        for path in ("/root", "/home", "/srv", "/mnt", "/media", "/boot", "/sys", "/var/lib", "/run/docker.sock"):
            assert box.run(f"test -e {path}").exit_code == 1, path

    def test_a_broker_socket_cannot_be_reached(self, box, tmp_path):
        path = Path(tempfile.mkdtemp()) / "broker.sock"
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
                server.listen()
                code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
                result = box.run(["/usr/bin/python3", "-c", code], network=True)
                assert result.exit_code in (1, 127)
                assert result.exit_code == 127 or "FileNotFoundError" in result.output.text
        finally:
            shutil.rmtree(path.parent)

    def test_hidden_folders_under_shown_ones(self, tmp_path):
        tool = tmp_path / "home/tools/python"
        for path in (tool / "bin", tool / "secret", tmp_path / "home/.ssh"):
            path.mkdir(parents=True)
            (path / "file").write_text("x")
        (tmp_path / "alias").symlink_to(tool)
        box = Box(
            tmp_path,
            toolchain_roots=[tool, tmp_path / "alias"],
            hidden=[tmp_path / "home", tool / "secret", Path("/usr/share")],
        )
        assert box.text(["/bin/ls", str(tool / "bin")]) == "file"
        assert box.text(["/bin/ls", str(tmp_path / "alias/bin")]) == "file"
        assert box.run(["/bin/ls", str(tmp_path / "home/.ssh")]).exit_code != 0
        for place in (tool / "secret", tmp_path / "alias/secret", Path("/usr/share")):
            assert box.text(["/bin/ls", str(place)]) == ""
            assert box.run(["/bin/touch", str(place / "x")]).exit_code != 0
        tmp = tmp_path / "tmp"
        tmp.mkdir()
        assert box.text(["/bin/ls", str(tool / "bin")], tmp=tmp) == "file"
        assert box.sandbox.check().isolated

    @pytest.mark.parametrize("hidden", ["/", "/usr"])
    def test_the_system_cannot_be_hidden(self, tmp_path, hidden):
        with pytest.raises(SandboxError, match="cannot be hidden"):
            Box(tmp_path, hidden=[Path(hidden)])

    def test_a_toolchain_that_is_hidden_is_a_contradiction(self, tmp_path):
        with pytest.raises(SandboxError, match="both a toolchain and"):
            Box(tmp_path, hidden=[tmp_path], toolchain_roots=[tmp_path])

    def test_environment_is_scrubbed(self, box, monkeypatch):
        monkeypatch.setenv("SECRET_OF_THE_WORKER", "x")
        monkeypatch.setenv("PYTHONPATH", "/x")
        lines = box.text("env", env={"MINE": "a b\nc=d"}).replace("\nc=d", "/c=d").splitlines()
        variables = dict(line.split("=", 1) for line in lines)
        assert variables.pop("MINE") == "a b/c=d"
        assert set(variables) <= {"PATH", "HOME", "LANG", "TERM", "PWD", "_", "SHLVL", "OLDPWD"}

    def test_environment_is_on_no_command_line(self, box):
        seen: list[str] = []

        def look(stream, chunk):
            for process in psutil.process_iter(["cmdline"]):
                seen.extend(process.info["cmdline"] or [])

        box.run("echo x; sleep 0.2", look, env={"TOKEN": "s3cret-value"})
        assert any("--args" in argument for argument in seen)
        assert not any("s3cret-value" in argument for argument in seen)

    def test_programs_are_on_the_path(self, tmp_path):
        tool = tmp_path / "real-tool"
        tool.write_text("#!/bin/sh\necho from-the-farm\n")
        tool.chmod(0o755)
        box = Box(tmp_path, programs={"tool": tool})
        assert box.text("command -v tool; tool") == "/opt/orchestrator/bin/tool\nfrom-the-farm"

    def test_no_descriptor_of_the_worker_is_open(self, box):
        assert box.text("ls /proc/$$/fd") in ("0\n1\n2", "0\n1\n10\n2")

    def test_who_a_command_is(self, box):
        assert box.text("id -u; id -g; id -un; hostname 2>/dev/null || cat /etc/hostname") == "1000\n1000\nbuild\nbuild"

    def test_processes_of_others_are_not_there(self, box):
        assert len(box.text("ls -d /proc/[0-9]*").split()) <= 4
        assert box.run(f"kill -0 {os.getpid()}").exit_code != 0

    def test_certificates_for_commands_with_a_network(self, box):
        assert box.text("echo $SSL_CERT_FILE") == ""
        if box.text("echo $SSL_CERT_FILE", network=True):
            test = "grep -q BEGIN $SSL_CERT_FILE && test $PIP_CERT = $SSL_CERT_FILE"
            assert box.run(test, network=True).exit_code == 0


class TestReach:
    def test_no_network_in_the_run(self, box):
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            connect = f"exec 3<>/dev/tcp/127.0.0.1/{server.getsockname()[1]}"
            assert box.run(["/bin/bash", "-c", connect]).exit_code != 0
            assert box.run(["/bin/bash", "-c", connect], network=True).exit_code == 0

    def test_abstract_sockets_of_the_machine(self, box):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"\0orchestrator-test-{os.getpid()}")
            server.listen()
            assert f"orchestrator-test-{os.getpid()}" not in box.text("cat /proc/net/unix")

    @pytest.mark.parametrize("folder", ["/", "/usr", "/usr/bin", "/etc", "/opt", "/var", "/run", "/proc/sys/kernel"])
    def test_read_only_root(self, box, folder):
        assert box.run(["/usr/bin/touch", f"{folder}/.probe"]).exit_code != 0

    @pytest.mark.parametrize(
        "file", ["/proc/sys/kernel/core_pattern", "/proc/sys/vm/swappiness", "/proc/sysrq-trigger", "/etc/passwd"]
    )
    def test_settings_of_the_kernel_cannot_be_opened_for_writing(self, box, file):
        assert box.run(f": >> {file}").exit_code != 0

    @pytest.mark.parametrize(
        "file", ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/dev/mem", "/dev/vda", "/dev/kmsg", "/sys"]
    )
    def test_views_of_the_kernel_are_masked(self, box, file):
        assert box.run(f"test -s {file} || head -c1 {file} | grep -q .").exit_code != 0

    @pytest.mark.parametrize(
        "attempt",
        [
            "mount -t tmpfs x /tmp", "unshare -U true", "unshare -m true", "chroot / true", "umount /proc",
            "mount -o remount,rw /usr", "mount -o remount,rw /proc", "nsenter -t 1 -m true", "mknod /tmp/sda b 8 0",
            "date -s 2000-01-01", "dmesg", "sysctl -w kernel.hostname=x",
        ],
    )  # fmt: skip
    def test_privileged_attempts_fail(self, box, attempt):
        assert box.run(attempt).exit_code not in (0, None)

    def test_no_privileges(self, box):
        status = box.text("cat /proc/self/status")
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert {int(facts[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {0}
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")

    def test_a_crash_does_not_reach_the_machines_core_dump_handler(self, box):
        for _ in range(10):
            assert box.text("grep -o 'core file size *[01] *[01] ' /proc/self/limits")

    def test_system_calls_past_the_namespaces_are_refused(self, tmp_path):
        if not Path("/usr/bin/python3").exists():
            pytest.skip("needs a Python of the system's own")
        code = """
import ctypes, errno, fcntl, platform, socket
libc = ctypes.CDLL(None, use_errno=True)
numbers = {"x86_64": (250, 321, 298, 425), "aarch64": (219, 280, 241, 425)}[platform.machine()]
names = []
for number in numbers:
    ctypes.set_errno(0)
    assert libc.syscall(number, 0, 0, 0, 0, 0) == -1
    names.append(errno.errorcode[ctypes.get_errno()])
for family in (40, 38):
    try:
        socket.socket(family, socket.SOCK_STREAM if family == 40 else socket.SOCK_SEQPACKET)
        names.append("opened")
    except OSError as error:
        names.append(errno.errorcode[error.errno])
try:
    fcntl.ioctl(0, 0x5412, b"x")
except OSError as error:
    names.append(errno.errorcode[error.errno])
socket.socket(); socket.socket(socket.AF_UNIX)
print(*names)
"""
        wanted = "EPERM EPERM EPERM ENOSYS EPERM EPERM EPERM"
        assert Box(tmp_path).text(["/usr/bin/python3", "-c", code]) == wanted

    def test_a_mount_point_is_never_taken_through_a_link(self, box, tmp_path):
        victim = tmp_path / "victim"
        victim.mkdir()
        (box.workspace / "node_modules").symlink_to(victim)
        (box.workspace / "deep").symlink_to(f"/oldroot{victim}")
        (box.workspace / "file").symlink_to(f"/oldroot{victim}/made")
        (tmp_path / "given").write_text("x")
        assert box.run("true", binds=(Bind(tmp_path / "given", "file"),)).exit_code == 126
        tmp = tmp_path / "tmp"
        tmp.mkdir()
        (tmp / "home").symlink_to(victim)
        assert box.run("true", tmp=tmp).exit_code == 126
        for target in ("node_modules", "node_modules/a", "deep/a", "/workspace/deep/b", "../victim/c"):
            result = box.run("true", binds=(Bind(tmp_path, target),))
            assert result.exit_code == 126, target
        assert list(victim.iterdir()) == []


class TestMounts:
    def test_bind(self, box, tmp_path):
        data = tmp_path / "data"
        data.mkdir()
        (data / "file").write_text("hello")
        cache = Bind(data, "/var/cache/data", writable=True)
        binds = (Bind(data, "vendor/data"), cache, Bind(data / "file", "/etc/given"), Bind(data / "file", "sub/given"))
        assert box.text("cat vendor/data/file /etc/given sub/given", binds=binds) == "hellohellohello"
        assert box.run("touch vendor/data/x || { touch /var/cache/data/y; exit 9; }", binds=binds).exit_code == 9
        assert sorted(path.name for path in data.iterdir()) == ["file", "y"]

    def test_overlay_keeps_changes_apart(self, box, tmp_path):
        lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
        for path in (lower, upper, work):
            path.mkdir()
        (lower / "a").write_text("lower")
        overlay = (Overlay(lower, upper, work, ".venv"),)
        box.run("cat .venv/a; echo changed > .venv/a; echo new > .venv/b", binds=overlay)
        assert (lower / "a").read_text() == "lower"
        assert not (lower / "b").exists()
        assert box.text("cat .venv/a .venv/b", binds=overlay) == "changed\nnew"
        assert list((box.workspace / ".venv").iterdir()) == []

    def test_throwaway_overlay_forgets(self, box, tmp_path):
        lower = tmp_path / "lower"
        lower.mkdir()
        (lower / "a").write_text("lower\n")
        overlay = (ThrowawayOverlay(lower, ".venv"),)
        assert box.text("cat .venv/a; echo x > .venv/a; cat .venv/a", binds=overlay) == "lower\nx"
        assert box.text("cat .venv/a", binds=overlay) == "lower"

    def test_tmp_is_private_and_lasts_when_asked(self, box, tmp_path):
        tmp = tmp_path / "tmp"
        tmp.mkdir()
        assert box.text("echo x > /tmp/f; echo y > ~/g; echo z > /var/tmp/h; echo $HOME", tmp=tmp) == "/tmp/home"
        assert box.text("cat /tmp/f ~/g /tmp/h", tmp=tmp) == "x\ny\nz"
        assert box.text("ls /tmp; touch /tmp/f ~/g /dev/shm/h && echo ok") == "home\nok"
        assert not Path("/tmp/f").exists()


class TestEnd:
    def test_deadline(self, box, marker):
        result = box.run(f"sleep {marker}", limits={"timeout_s": 0.3})
        assert result.ended is Ended.TIMEOUT
        assert 0.3 <= result.seconds < 0.6

    def test_idle_deadline(self, box, marker):
        assert box.run(f"sleep {marker}", limits={"idle_timeout_s": 0.3}).ended is Ended.IDLE

    def test_cancel_at_any_moment(self, box, marker):
        for wait_ms in (0, 1, 2, 3, 4, 5, 6, 8, 10, 30, 100):
            cancel = CancelToken()
            timer = threading.Timer(wait_ms / 1000, cancel.set, args=["asked to"])
            timer.start()
            begun = time.monotonic()
            result = box.run(f"setsid sleep {marker} & sleep {marker}", cancel=cancel)
            assert result.ended is Ended.CANCELLED
            assert time.monotonic() - begun < wait_ms / 1000 + 0.25
            assert not living(marker)
            timer.join()
            del cancel

    def test_term_reaches_the_program_and_its_answer_counts(self, box):
        cancel = CancelToken()
        threading.Timer(0.3, cancel.set, args=["asked to"]).start()
        result = box.run("trap 'echo cleaned; exit 5' TERM; while :; do sleep 0.02; done", cancel=cancel)
        assert (result.ended, result.exit_code, result.output.text) == (Ended.CANCELLED, 5, "cleaned\n")
        del cancel

    def test_one_that_does_not_answer_term_is_killed(self, box):
        limits = {"timeout_s": 0.3, "term_grace_s": 0.4}
        result = box.run("trap 'echo no' TERM; while :; do sleep 0.02; done", limits=limits)
        assert result.ended is Ended.TIMEOUT
        assert 0.7 <= result.seconds < 1.3

    def test_a_daemon_does_not_survive_its_command(self, box, marker):
        assert box.run(DAEMON.format(marker) + "; exit 4").exit_code == 4
        assert not living(marker)

    def test_a_daemon_that_holds_the_output_is_not_waited_for(self, box, marker):
        result = box.run(f"setsid sleep {marker} & echo started")
        assert (result.exit_code, result.output.text) == (0, "started\n")
        assert result.seconds < 1.0

    def test_a_fork_bomb_ends(self, box, marker):
        bomb = "bomb() { [ $1 -gt 0 ] && { bomb $(($1-1)) & bomb $(($1-1)) & }; sleep MARKER; }; bomb 6; sleep MARKER"
        assert box.run(bomb.replace("MARKER", marker), limits={"timeout_s": 1.0}).ended is Ended.TIMEOUT
        assert not living(marker)

    @pytest.mark.parametrize("by", ["kill -KILL -1", "kill -KILL 1", "kill -STOP -1; kill -TERM $PPID"])
    def test_a_command_cannot_end_its_boundary(self, box, marker, by):
        result = box.run(f"setsid sleep {marker} & sleep 0.1; {by}; exit 3", limits={"timeout_s": 1.0})
        assert result.ended in (Ended.EXITED, Ended.SIGNALLED, Ended.TIMEOUT)
        assert not living(marker)

    def test_a_killed_worker_leaves_nothing(self, box, marker):
        worker = subprocess.Popen(
            [sys.executable, "-c", f"""
import sys; sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from worker.process import ProcessLimits
from worker.sandbox import View, create
workspace = Path({str(box.workspace)!r})
sandbox = create("bubblewrap", scratch=workspace)
sandbox.run(View(workspace), ["/bin/sh", "-c", {DAEMON.format(marker)!r} + "; sleep {marker}"], ProcessLimits())
"""],
        )  # fmt: skip
        until = time.monotonic() + 10
        while not _sleeping(marker) and time.monotonic() < until:
            time.sleep(0.05)
        assert _sleeping(marker)
        worker.kill()
        worker.wait()
        until = time.monotonic() + 3
        while living(marker) and time.monotonic() < until:
            time.sleep(0.01)
        assert not living(marker)

    def test_a_worker_killed_at_any_moment_of_a_start_leaves_nothing(self, box, marker):
        for moment in range(40):
            worker = os.fork()
            if worker == 0:
                try:
                    box.run(["/bin/sleep", marker])
                finally:
                    os._exit(0)
            time.sleep(0.0005 + moment * 0.0003)
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
        until = time.monotonic() + 3
        while len(living(marker)) > 4 and time.monotonic() < until:
            time.sleep(0.01)
        commands = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
        assert ["/bin/sleep", marker] not in commands, "a build runs that nobody watches"
        # One that was killed within its fork leaves a bubblewrap that runs nothing: the next worker sweeps it up.
        box.sandbox.check()
        assert not living(marker)

    def test_peak_memory_is_the_programs(self, box):
        result = box.run("head -c 60000000 /dev/zero | tail -c 60000000 | (sleep 1.2; wc -c)")
        assert result.output.text.strip() == "60000000"
        assert result.peak_memory_bytes is not None
        assert 50_000_000 < result.peak_memory_bytes < 150_000_000

    def test_flood(self, box):
        result = box.run("head -c 100000000 /dev/zero", limits={"output_bytes": 10_000})
        assert (result.exit_code, result.output.total_bytes) == (0, 100_000_000)
        assert len(result.output.text) < 10_200


class TestMachine:
    def test_check_holds_and_is_quick(self, tmp_path):
        box = Box(tmp_path, hidden=[Path.home(), REPOSITORY, tmp_path])
        begun = time.monotonic()
        report = box.sandbox.check()
        assert (report.isolated, report.shares_environments, report.reason) == (True, True, "")
        assert time.monotonic() - begun < 0.5
        assert list((tmp_path / "scratch").iterdir()) == []

    def test_check_sees_a_hidden_folder_that_is_not(self, tmp_path, monkeypatch):
        monkeypatch.setattr("worker.sandbox.root._toolchains_and_masks", lambda *_: [])
        with pytest.raises(SandboxError, match="commands can see /usr/share/"):
            Box(tmp_path, hidden=[Path("/usr/share")]).sandbox.check()

    def test_check_sees_a_root_that_can_be_written(self, tmp_path, monkeypatch):
        options = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/opt"]
        monkeypatch.setattr("worker.sandbox.root._kernel_views", lambda: options)
        with pytest.raises(SandboxError, match="commands can write /opt"):
            Box(tmp_path).sandbox.check()

    def test_check_sees_a_leaking_environment(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SECRET_OF_THE_WORKER", "x")
        box = Box(tmp_path)
        real = box.sandbox._options

        def leaking(view, cleanup):
            options, fds = real(view, cleanup)
            return [*options, "--setenv", "SECRET_OF_THE_WORKER", "x"], fds

        monkeypatch.setattr(box.sandbox, "_options", leaking)
        with pytest.raises(SandboxError, match="SECRET_OF_THE_WORKER"):
            box.sandbox.check()

    def test_check_without_overlays_shares_no_environments(self, tmp_path, monkeypatch):
        box = Box(tmp_path)
        real = box.sandbox._options

        def without(view, cleanup):
            if any(isinstance(mount, Overlay) for mount in view.binds):
                raise SandboxError("overlay refused")
            return real(view, cleanup)

        monkeypatch.setattr(box.sandbox, "_options", without)
        report = box.sandbox.check()
        assert not report.shares_environments
        assert "overlay refused" in report.reason
        assert not box.sandbox.shares_environments

    def test_check_without_user_namespaces_says_what_to_do(self, tmp_path):
        broken = tmp_path / "bwrap"
        broken.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
        broken.chmod(0o755)
        with pytest.raises(SandboxError, match="uid map") as caught:
            Bubblewrap(scratch=tmp_path / "scratch", bwrap=broken).check()
        assert "apparmor_restrict_unprivileged_userns" in caught.value.hint

    def test_eight_at_once(self, box):
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda n: box.run(f"seq 1 2000; sleep 0.0{n % 7}; exit {n}"), range(40)))
        assert [result.exit_code for result in results] == list(range(40))
        assert {result.output.total_bytes for result in results} == {8_893}

    def test_a_command_costs_milliseconds(self, box):
        def once(run) -> float:
            begun = time.perf_counter()
            run()
            return time.perf_counter() - begun

        bare = sorted(once(lambda: run_process(["/bin/true"], env={}, limits=ProcessLimits())) for _ in range(20))[10]
        boxed = sorted(once(lambda: box.run(["/bin/true"])) for _ in range(20))[10]
        assert boxed - bare < 0.020

    def test_as_an_ordinary_user(self):
        if os.getuid() != 0:
            pytest.skip("only root can become somebody else (and without root all other tests are this test)")
        reason = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(find_bwrap()), "--version"],
            capture_output=True, text=True,
        )  # fmt: skip
        if reason.returncode != 0:
            pytest.skip(f"nobody cannot reach bubblewrap here: {reason.stderr}")
        folder = Path(tempfile.mkdtemp())
        try:
            os.chown(folder, 65534, 65534)
            verdict = _as_nobody(lambda: _build_as_nobody(folder))
        finally:
            shutil.rmtree(folder)
        assert verdict == {
            "report": (True, True, ()), "exit": 3, "output": "1000\n", "owner": 65534, "kill": Ended.TIMEOUT,
        }  # fmt: skip


def _build_as_nobody(folder: Path) -> dict[str, object]:
    box = Box(folder, hidden=[Path("/root")])
    report = box.sandbox.check()
    result = box.run("id -u; touch made; exit 3")
    return {
        "report": (report.isolated, report.shares_environments, report.notes),
        "exit": result.exit_code,
        "output": result.output.text,
        "owner": (box.workspace / "made").stat().st_uid,
        "kill": box.run("sleep 60", limits={"timeout_s": 0.2}).ended,
    }


def _as_nobody(work) -> object:
    """The result of `work` in a child that is nobody (an interpreter of nobody's own could not import from /root)."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            answer: object = work()
        except BaseException as error:
            answer = repr(error)
        os.write(write, pickle.dumps(answer))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pickle.loads(pipe.read())
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return answer
