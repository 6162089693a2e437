"""Our messages are the ones Celery itself would have put on the queue."""

from __future__ import annotations

import json

import pytest

from shared import broker

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("priority", [0, 9])
def test_a_message_is_laid_out_as_celery_lays_it_out(broker_url: str, priority: int) -> None:
    app = broker.celery_app(broker_url, prefix="t:")
    app.send_task(
        broker.TASK_NAME, args=["b1"], queue=broker.queue_name("python"), task_id="b1", argsrepr="demo",
        priority=broker.HIGHEST_PRIORITY - priority, ignore_result=True,
    )  # fmt: skip
    theirs = json.loads(broker.connect(broker_url).lindex(broker.queue_key("t:", "python", priority), 0))
    app.close()
    ours = json.loads(
        broker.build_message("b1", stack="python", title="demo", priority=priority, origin=theirs["headers"]["origin"])
    )
    for own in ("delivery_tag", "reply_to"):  # random, and the reply queue of a sender that waits for none
        theirs["properties"].pop(own)
        ours["properties"].pop(own)
    theirs["properties"].pop("argsrepr", None)  # a stray copy of the header
    assert ours == theirs
