"""Speed as ratios, measured side by side in one run: `python -m tests.benchmarks`.

Uses the local farm in a state folder of its own; prints a table. Machines are noisy: nothing here fails on a number.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from producer import local_farm
from producer.client import Farm
from shared.plan import Plan
from shared.settings import load_settings
from worker.machine import find_uv

ROUNDS = 15
ROOT = Path(__file__).resolve().parents[2]
MAIN = {"filename": "main.py", "code": "print(1)"}
TRIVIAL = Plan.parse({"name": "trivial", "files": [MAIN]})
FIVE = Plan.parse({"name": "five", "files": [MAIN], "deps": ["pandas", "requests", "rich", "click", "httpx"]})


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def by_hand(uv: Path) -> float:
    """The trivial plan typed by hand in a warm cache; the folder is made and removed outside the measurement."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "main.py").write_text("print(1)")
        interpreter = os.path.realpath(getattr(sys, "_base_executable", sys.executable))

        def commands() -> None:
            subprocess.run([uv, "venv", "-q", f"{folder}/.venv", "--python", interpreter], check=True)
            subprocess.run([f"{folder}/.venv/bin/python", f"{folder}/main.py"], check=True, stdout=subprocess.DEVNULL)

        return seconds(commands)


def main() -> None:
    with tempfile.TemporaryDirectory() as state:
        os.environ["ORCHESTRATOR_PATHS__STATE_DIR"] = state
        os.environ["ORCHESTRATOR_PATHS__CACHE_DIR"] = f"{state}/cache"
        os.environ["ORCHESTRATOR_WORKER__CONCURRENCY"] = "8"
        settings = load_settings()
        farm = Farm.open(settings)
        try:
            measure(farm)
        finally:
            local_farm.down(settings)


def measure(farm: Farm) -> None:
    def build(plan: Plan) -> None:
        result = farm.submit(plan).wait()
        assert result.succeeded, result.message

    uv = find_uv()
    cold = seconds(lambda: build(FIVE))
    build(TRIVIAL)
    trivial, five, hand, submit = [], [], [], []
    for _ in range(ROUNDS):  # interleaved, so that noise meets all alike
        trivial.append(seconds(lambda: build(TRIVIAL)))
        five.append(seconds(lambda: build(FIVE)))
        hand.append(by_hand(uv))
    command = [sys.executable, str(ROOT / "orchestrator.py"), "submit", "-"]
    for _ in range(5):
        submit.append(
            seconds(lambda: subprocess.run(command, input=TRIVIAL.canonical, check=True, capture_output=True))
        )
    middle = statistics.median
    memory = psutil.Process(farm.workers()[0]["pid"]).memory_info().rss / 1e6
    rows = [
        ("trivial plan, warm farm / by hand", middle(trivial) / middle(hand), 1.5),
        ("five packages, second build / trivial plan", middle(five) / middle(trivial), 1.3),
        ("five packages, first build / second", cold / middle(five), None),
        ("`submit` from process start to queued, s", middle(submit), 0.5),
        ("worker with 8 slots, resident MB", memory, None),
    ]
    print(f"{'measure':<46} {'value':>8} {'at most':>8}")
    for name, value, bound in rows:
        print(f"{name:<46} {value:>8.2f} {bound if bound is not None else '-':>8}")


if __name__ == "__main__":
    main()
