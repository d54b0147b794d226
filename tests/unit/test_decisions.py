"""What is written down of a request, and above all what is not."""

import json

import pytest

from ngcp_task_agent.audit import AuditLog
from ngcp_task_agent.decisions import ARGUMENTS, Decisions
from ngcp_task_agent.destination import Node
from ngcp_task_agent.dispatch import Dispatcher
from ngcp_task_agent.interfaces import Delivery
from ngcp_task_agent.messages import decode_request

from ..helpers import request, task

NODE = Node("prx01a")


@pytest.fixture
def decide(tmp_path):
    """``decide(task, **request)`` admits a request; the line that was written of it."""
    log = AuditLog(str(tmp_path / "audit.jsonl"), 10**7, 0, lambda: "prx01a")
    log.open()
    decisions = Decisions(log)

    def decide(one, **fields):
        payload = request(dst="prx01a", **fields)
        delivery = Delivery(payload, "control", caller="uid 0, pid 1")
        dispatcher = Dispatcher(lambda: NODE)
        dispatcher.tasks = {one.name: one}
        asked = decode_request(payload)
        admission = dispatcher.admit(asked, delivery, "memory")
        assert decisions.allowed(asked, delivery, "memory", admission) == ""
        return json.loads((tmp_path / "audit.jsonl").read_bytes().splitlines()[-1])

    yield decide
    log.close()


def test_secrets_are_not_written_down(decide):
    """Wherever they stand in the arguments, and however they are written."""
    line = decide(
        task(mask=["data.pin"]),
        data={"pin": '12"34', "note": 'my pin is 12"34', "more": ['x12"34x']},
    )
    assert line["arguments"] == {"pin": "***", "note": "my pin is ***", "more": ["x***x"]}


@pytest.mark.parametrize("mask", [[], ["data.pin"]])
def test_arguments_that_are_nested_too_deeply_to_be_written(decide, mask):
    """It is run all the same, if the task takes it."""
    deep = {"pin": "s3cret", "deep": []}
    for _ in range(300):
        deep["deep"] = [deep["deep"]]
    assert decide(task(mask=mask), data=deep)["arguments"] == "***"


def test_long_arguments_are_told_apart_only(decide):
    """A file of a request must not fill the log."""
    short, long = ({"text": "x" * size} for size in (ARGUMENTS - 11, ARGUMENTS - 10))
    assert decide(task(), data=short)["arguments"] == short
    found = decide(task(), data=long)["arguments"]
    assert found["bytes"] == ARGUMENTS + 1
    assert len(found["sha256"]) == 64


def test_a_string_that_holds_json_is_written_as_what_it_holds(decide):
    """As the task sees it; and long names are cut."""
    line = decide(task(), data='{"extra_args": "ipban"}', src="x" * 5000)
    assert line["arguments"] == {"extra_args": "ipban"}
    assert line["src"] == "x" * 1000
    assert line["caller"] == "uid 0, pid 1"
