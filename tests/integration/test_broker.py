"""Our messages are the ones Celery itself would have put on the queue."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from producer.local_farm import server_program
from shared import broker

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("priority", [0, 9])
def test_a_message_is_laid_out_as_celery_lays_it_out(tmp_path_factory: pytest.TempPathFactory, priority: int) -> None:
    folder = tmp_path_factory.mktemp("b")
    socket: Path = folder / "s"
    process = subprocess.Popen(
        [str(server_program()), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        url = f"unix://{socket}"
        app = broker.celery_app(url, prefix="t:")
        app.send_task(
            broker.TASK_NAME, args=["b1"], queue=broker.queue_name("python"), task_id="b1", argsrepr="demo",
            priority=broker.HIGHEST_PRIORITY - priority, ignore_result=True,
        )  # fmt: skip
        theirs = json.loads(broker.connect(url).lindex(broker.queue_key("t:", "python", priority), 0))
        app.close()
    finally:
        process.terminate()
        process.wait(timeout=10)
    ours = json.loads(
        broker.build_message("b1", stack="python", title="demo", priority=priority, origin=theirs["headers"]["origin"])
    )
    for own in ("delivery_tag", "reply_to"):  # random, and the reply queue of a sender that waits for none
        theirs["properties"].pop(own)
        ours["properties"].pop(own)
    theirs["properties"].pop("argsrepr", None)  # a stray copy of the header
    assert ours == theirs
