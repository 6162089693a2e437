"""The record's transitions against a real server: who may claim, report and finish, and how often."""

from __future__ import annotations

import time

import pytest

from shared import broker
from shared.errors import BuildNotFound
from shared.plan import Plan
from shared.records import Claim, Records, Refusal, new_build_id
from shared.result import BuildResult, Cause, Status

pytestmark = pytest.mark.integration

PLAN = Plan.parse({"name": "demo", "files": [{"filename": "main.py", "code": "print(1)"}]})


@pytest.fixture(scope="module")
def records(broker_url: str) -> Records:
    return Records(broker.connect(broker_url), prefix="t:", ttl_s=60)


def submitted(records: Records) -> str:
    build_id = new_build_id()
    message = broker.build_message(build_id, stack="python", title="demo", priority=0, origin="test")
    queue = broker.queue_key(records.prefix, "python", 0)
    assert records.submit(build_id, PLAN, stack="python", title="demo", queue=queue, message=message)
    return build_id


def verdict(build_id: str, status: Status = Status.SUCCEEDED) -> BuildResult:
    return BuildResult(build_id=build_id, status=status)


def claimed(records: Records, build_id: str, lease_s: float = 30) -> Claim:
    claim = records.claim(build_id, worker="w", lease_s=lease_s)
    assert isinstance(claim, Claim)
    return claim


def test_a_result_is_written_once(records: Records) -> None:
    claim = claimed(records, submitted(records))
    assert records.finish(claim, verdict(claim.build_id))
    assert not records.finish(claim, verdict(claim.build_id, Status.FAILED))
    result = records.result(claim.build_id)
    assert result is not None
    assert result.status is Status.SUCCEEDED


def test_a_held_build_is_not_claimed_twice_and_a_finished_one_never_again(records: Records) -> None:
    claim = claimed(records, submitted(records))
    assert records.claim(claim.build_id, worker="other", lease_s=30) == Refusal("held")
    records.finish(claim, verdict(claim.build_id))
    assert records.claim(claim.build_id, worker="other", lease_s=30) == Refusal("finished")


def test_after_a_lost_lease_only_the_new_owner_may_report(records: Records) -> None:
    build_id = submitted(records)
    old = claimed(records, build_id, lease_s=0.01)
    time.sleep(0.05)
    new = claimed(records, build_id)
    assert int(new.token) > int(old.token)
    assert (new.attempt, records.renew(old, lease_s=30)[0]) == (2, False)
    assert records.append(old, [("note", {"text": "stale"})]) == ""
    assert not records.finish(old, verdict(build_id, Status.FAILED))
    assert records.finish(new, verdict(build_id))


def test_a_queued_build_is_cancelled_before_it_starts(records: Records) -> None:
    build_id = submitted(records)
    refused = BuildResult.refused(build_id, name="demo", cause=Cause.CANCELLED, message="cancelled")
    assert records.cancel(build_id, refused, by="me") == "cancelled"
    assert records.claim(build_id, worker="w", lease_s=30) == Refusal("finished")


def test_cancelling_a_running_build_reaches_its_heartbeat(records: Records) -> None:
    claim = claimed(records, submitted(records))
    refused = BuildResult.refused(claim.build_id, name="demo", cause=Cause.CANCELLED, message="cancelled")
    assert records.cancel(claim.build_id, refused, by="me") == "requested"
    assert records.renew(claim, lease_s=30) == (True, "me")


def test_events_are_read_from_any_cursor_in_order(records: Records) -> None:
    claim = claimed(records, submitted(records))
    records.append(claim, [("output", {"text": str(number)}) for number in range(5)])
    records.finish(claim, verdict(claim.build_id), [("output", {"text": "last"})])
    events = records.events(claim.build_id)
    assert [event.type for event in events] == ["state", "state", *["output"] * 6, "end"]
    assert records.events(claim.build_id, after=events[4].cursor) == events[5:]


def test_the_same_id_is_stored_once(records: Records) -> None:
    build_id = submitted(records)
    assert not records.submit(build_id, PLAN, stack="python", title="demo", queue="t:q", message=b"{}")


def test_an_unknown_build_is_said_to_be_unknown(records: Records) -> None:
    with pytest.raises(BuildNotFound):
        records.get("nothing")
    assert records.claim("nothing", worker="w", lease_s=1) == Refusal("unknown")
