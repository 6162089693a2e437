"""The real CLI, a real Valkey and a real worker process, in a home of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).resolve().parents[2]


class Cli:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {
            key: value for key, value in os.environ.items() if not key.startswith(("ORCHESTRATOR_", "XDG_", "PYTHON"))
        } | {"HOME": str(home)}

    def __call__(self, *arguments: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "orchestrator.py"), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.env,
            cwd=cwd or self.home,
            timeout=240,
            check=False,
        )


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    cli = Cli(tmp_path_factory.mktemp("home"))
    yield cli
    cli("farm", "down")


def plan(code: str, **fields: object) -> str:
    return json.dumps({"name": "demo", "files": [{"filename": "main.py", "code": code}], **fields})


def test_a_plan_with_real_dependencies_is_delivered_and_its_environment_reused(cli: Cli) -> None:
    first = cli("execute", str(ROOT / "tests/plans/hello.json"), "--json")
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert "1,234,567" in result["output"]["head"]
    assert Path(result["project_dir"]) == cli.home / "output" / "hello-farm"
    second = json.loads(cli("execute", str(ROOT / "tests/plans/hello.json"), "--json").stdout)
    assert second["environment"]["outcome"] == "hit"
    assert second["project_dir"].endswith("hello-farm-2")
    again = cli("run", result["project_dir"])
    assert (again.returncode, "1,234,567" in again.stdout) == (0, True), again.stderr


def test_a_failing_program_is_the_users_fault_and_exits_1(cli: Cli) -> None:
    done = cli("execute", "-", "--json", stdin=plan("raise SystemExit(7)"))
    result = json.loads(done.stdout)
    assert (done.returncode, result["status"], result["cause"], result["exit_code"]) == (1, "failed", "user_code", 7)


def test_a_package_that_does_not_exist_is_a_dependency_fault(cli: Cli) -> None:
    done = cli("execute", "-", "--json", stdin=plan("print(1)", deps=["no-such-package-zzz-9"]))
    result = json.loads(done.stdout)
    assert (done.returncode, result["status"], result["cause"]) == (1, "failed", "dependency"), result["message"]


def test_a_run_past_its_deadline_is_a_timeout(cli: Cli) -> None:
    done = cli("execute", "-", "--json", stdin=plan("import time; time.sleep(60)", limits={"run_timeout_s": 1}))
    result = json.loads(done.stdout)
    assert (result["status"], result["cause"], result["advice"]) == ("timed_out", "timeout", "raise_limit")


def test_a_running_build_is_cancelled(cli: Cli) -> None:
    build = cli("submit", "-", stdin=plan("import time; print('up', flush=True); time.sleep(100)")).stdout.strip()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "orchestrator.py"), "logs", "-f", build],
        stdout=subprocess.PIPE,
        text=True,
        env=cli.env,
    )
    assert process.stdout is not None
    while "up" not in (line := process.stdout.readline()):
        assert line, "the log ended before the program ran"
    assert cli("cancel", build).returncode == 0
    done = cli("result", build, "--wait", "--json")
    process.communicate(timeout=30)
    assert (done.returncode, json.loads(done.stdout)["status"]) == (4, "cancelled")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "line 1, column 2"),
        ('{"files": 3}', "files"),
        ('{"name": "x", "fils": []}', "fils"),
        ("[]", "JSON object"),
    ],
)
def test_bad_plans_are_one_clear_error_and_exit_2(cli: Cli, text: str, says: str) -> None:
    done = cli("submit", "-", stdin=text)
    assert (done.returncode, says in done.stderr, done.stdout) == (2, True, ""), done.stderr


def test_a_stack_that_no_worker_has_is_answered_at_once(cli: Cli) -> None:
    done = cli("submit", "-", "--json", stdin=json.dumps({"files": [{"filename": "go.mod", "code": "module x\n"}]}))
    assert (done.returncode, json.loads(done.stdout)["cause"]) == (3, "unsatisfiable")


def test_folders_called_like_our_packages_are_not_imported(cli: Cli, tmp_path: Path) -> None:
    for name in ("worker", "shared", "plugins", "producer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    done = cli("execute", "-", stdin=plan("print('ours')"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_unreachable_broker_is_a_farm_fault(cli: Cli) -> None:
    other = Cli(cli.home)
    other.env["ORCHESTRATOR_BROKER__URL"] = "redis://127.0.0.1:1/0"
    done = other("submit", "-", stdin=plan("print(1)"))
    assert (done.returncode, "cannot reach the broker" in done.stderr) == (3, True), done.stderr
