"""Clients that exist today, of every generation, get right answers from three real daemons."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from .clients import GENERATIONS
from .fleet import FIELD_REQUESTS, PROXIES
from .wire import ACTIVE_PROXIES, CONTROL_CHANNEL, request

pytestmark = pytest.mark.redis

NAMES = {"sp1", "prx01a"}
every_generation = pytest.mark.parametrize("generation", GENERATIONS)
map_and_count = pytest.mark.parametrize("generation", ["b", "c", "d"])


@pytest.fixture
def call(fleet):
    """Call as one generation does: ``call("b", task, dst, data=…, options=…)``."""
    client = fleet.server.client()

    def make(generation, task, dst=ACTIVE_PROXIES, **fields):
        body = request(task, dst, feedback=f"client-{uuid.uuid4()}", **fields)
        return GENERATIONS[generation](client, CONTROL_CHANNEL, body)

    yield make
    client.close()


@map_and_count
@pytest.mark.parametrize("name", FIELD_REQUESTS)
def test_every_field_request_is_done_on_all_active_proxies(call, generation, name):
    """The clients which wait for all nodes see three times done, and each node's stdout.

    Generation c takes twins for one node, and is content when the first of them is done.
    """
    task, data, options, stdout = FIELD_REQUESTS[name]

    outcome = call(generation, task, data=data, options=options)

    assert (outcome.finished, outcome.failed) == (True, "")
    assert outcome.data == dict.fromkeys(NAMES, stdout)
    assert outcome.count("accepted") == PROXIES
    done = outcome.count("done")
    assert done == PROXIES or (generation == "c" and done == PROXIES - 1)
    assert len(outcome.messages) == PROXIES + done


@pytest.mark.parametrize("name", FIELD_REQUESTS)
def test_oldest_client_gets_the_first_result(call, name):
    """Generation a stops at the first message that is not accepted."""
    task, data, options, stdout = FIELD_REQUESTS[name]

    outcome = call("a", task, data=data, options=options)

    assert (outcome.finished, outcome.failed) == (True, "")
    assert outcome.messages[-1]["data"] == stdout


@every_generation
def test_one_node_by_name(call, generation):
    """A literal name with one owner gives one accepted and one done."""
    outcome = call(generation, "whoami", "sp1")

    assert (outcome.finished, outcome.failed) == (True, "")
    assert [body["status"] for body in outcome.messages] == ["accepted", "done"]
    assert outcome.data == {"sp1": "node 0\n"}


@pytest.mark.parametrize("generation", ["b", "d"])
def test_two_nodes_of_one_name_are_both_heard(call, generation):
    """Rule 10: a map by src holds both as one; the messages tell them apart."""
    outcome = call(generation, "slow_whoami", "prx01a")

    assert (outcome.finished, outcome.failed) == (True, "")
    done = {body["data"] for body in outcome.messages if body["status"] == "done"}
    assert done == {"node 1\n", "node 2\n"}


@every_generation
def test_a_task_of_one_node_is_no_failure_on_a_wildcard(call, generation):
    """Rule 1: nodes without the task are silent, so not even generation b fails."""
    outcome = call(generation, "only_on_sp1", "*")

    assert (outcome.finished, outcome.failed) == (True, "")
    assert outcome.data == {"sp1": "only here\n"}


def test_a_task_of_nobody_ends_in_the_clients_own_time_limit(call):
    """Rule 1: on a wildcard nobody says a word about an unknown task.

    Generation c is left out: it would wait for 10 s to see the same nothing.
    """
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(lambda generation: call(generation, "no_such_task", "*"), "abd"))

    assert [outcome.finished for outcome in outcomes] == [False] * 3
    assert [outcome.messages for outcome in outcomes] == [[]] * 3


@pytest.mark.parametrize("generation", ["a", "b"])
def test_an_unknown_task_on_a_named_node_fails_at_once(call, generation):
    """Rule 2: rejected says why, long before the client's 2 s are over."""
    outcome = call(generation, "no_such_task", "sp1")

    assert outcome.finished
    assert outcome.failed
    assert outcome.seconds < 1


@every_generation
@pytest.mark.parametrize("task", ["exits_with_3", "missing_program", "unknown_user", "killed"])
def test_a_failure_ends_the_call_with_a_reason(call, generation, task):
    """Rule 4: the first error ends generations a and b, the others hear it from every node."""
    outcome = call(generation, task)

    assert outcome.finished
    assert outcome.failed
    assert outcome.count("done", "rejected") == 0
    if generation == "d":
        assert outcome.count("accepted") == outcome.count("error")


@map_and_count
def test_one_failing_node_of_three(call, generation):
    """A node's error is heard beside the others' done."""
    outcome = call(generation, "half", "*")

    assert outcome.finished
    assert outcome.failed
    assert outcome.count("error") >= 1


@pytest.mark.parametrize("generation", ["b", "c", "d"])
def test_a_time_limit_is_reported_before_clients_go(call, generation):
    """Rules 4 and 9: the limit gives error, not silence."""
    outcome = call(generation, "too_long")

    assert outcome.finished
    assert outcome.failed
    assert outcome.seconds < 2
