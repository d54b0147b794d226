import asyncio
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent import dispatch
from ngcp_task_agent.destination import Node
from ngcp_task_agent.dispatch import LOCAL, Crowded, Dispatcher, Gate
from ngcp_task_agent.errors import NotForThisNode, Rejected
from ngcp_task_agent.interfaces import Delivery
from ngcp_task_agent.messages import decode_request
from ngcp_task_agent.schemas import Schema

from ..helpers import NODE, request, task

CONTROL = Delivery(b"", "control")
SILENT = ["*", "prx*", "prx01?", "*|state=active", "prx01?|role=lb"]
NAMED = ["prx01a", "db*,prx01a", "prx01a|state=active", " prx01a "]
ELSEWHERE = ["db01a", "db*", "prx01b", "*|state=standby", "prx01a|state=standby", "local"]
STEPS = ("join", "join", "join", "leave", "withdraw", "withdraw", "limit")
GATE_STEPS = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 20)), min_size=8, max_size=40
)


def dispatcher(*tasks, node=NODE):
    dispatcher = Dispatcher(lambda: node)
    dispatcher.tasks = {t.name: t for t in tasks or [task()]}
    return dispatcher


def admit(dispatcher, delivery=CONTROL, backend="memory", **fields):
    return dispatcher.admit(decode_request(request(**fields)), delivery, backend)


def full_gate():
    gate = Gate(max_running=1, max_queued=0)
    gate.join()
    return gate


# The gate


@given(st.integers(1, 3), GATE_STEPS)
def test_a_gate_lets_in_as_many_as_it_may_in_the_order_they_came(max_running, steps):
    """Against a model of two lists: nobody overtakes, and no place is lost or given twice."""
    asyncio.run(follow_the_model(Gate(max_running), steps))


async def follow_the_model(gate, steps):
    running, waiting = [], []  # None, or the future that a job waits or has waited for
    for step, number in steps:
        if step == "join":
            place = gate.join()
            assert (place is None) is (len(running) < gate.max_running)
            (running if place is None else waiting).append(place)
        elif step == "leave" and running:
            running.pop(number % len(running))
            gate.leave()
        elif step == "withdraw" and (futures := [p for p in running + waiting if p is not None]):
            place = futures[number % len(futures)]
            (waiting if place in waiting else running).remove(place)
            gate.withdraw(place)
        elif step == "limit":
            gate.max_running = 1 + number % 3
        while waiting and len(running) < gate.max_running:
            running.append(waiting.pop(0))

        assert (gate.running, gate.queued) == (len(running), len(waiting))
        assert all(place is None or place.done() for place in running)
        assert not any(place.done() for place in waiting)
    for _ in range(len(running) + len(waiting)):
        gate.leave()
    assert (gate.running, gate.queued) == (0, 0)


async def test_a_gate_is_full_when_nobody_may_even_wait():
    """Running and waiting have a limit each."""
    gate = Gate(max_running=1, max_queued=1)

    gate.join()
    assert not gate.full
    waiter = gate.join()
    assert gate.full
    gate.withdraw(waiter)
    assert not gate.full


async def test_a_lower_limit_lets_those_who_run_go_on():
    """Files are read again while jobs run; the limit holds for who comes next."""
    gate = Gate(max_running=2)
    gate.join(), gate.join()
    waiter = gate.join()

    gate.max_running = 1
    gate.leave()
    assert not waiter.done()
    gate.leave()
    assert waiter.done()


async def test_after_a_higher_limit_nobody_overtakes_those_who_wait():
    """Whoever waited when the file was changed still came first."""
    gate = Gate(max_running=1)
    gate.join()
    waiter = gate.join()

    gate.max_running = 2
    newcomer = gate.join()

    assert waiter.done()
    assert newcomer is not None


# Whom it is for


@pytest.mark.parametrize("dst", SILENT + NAMED)
def test_a_request_for_this_node_is_admitted(dst):
    """With all that a broker needs to know, and the name to sign with."""
    fields = {"uuid": "U-1", "data": '{"user": "anna"}'}

    admission = admit(dispatcher(), dst=dst, **fields)

    assert (admission.task.name, admission.node, admission.fault) == ("ping", "prx01a", "")
    job = admission.job
    assert (job.task, job.uuid, job.src, job.data) == ("ping", "U-1", "web01a", fields["data"])
    assert job.arguments == {"user": "anna"}
    assert job.options == {"feedback_channel": "fb"}


@pytest.mark.parametrize("dst", ELSEWHERE)
@pytest.mark.parametrize("name", ["ping", "no-such-task"])
def test_a_request_for_another_node_is_passed_over(dst, name):
    """Not even "unknown task": one `rejected` makes a client fail the whole call."""
    with pytest.raises(NotForThisNode) as caught:
        admit(dispatcher(), dst=dst, task=name)

    assert not isinstance(caught.value, Crowded)


@pytest.mark.parametrize(
    ("delivery", "src"),
    [(CONTROL._replace(local=True), "web01a"), (CONTROL, "prx01a"), (CONTROL, "proxy")],
)
@pytest.mark.parametrize("dst", ["local", "localhost"])
def test_local_is_who_sent_it_or_is_beside_the_bus(delivery, src, dst):
    """By the way it came, or by a `src` that is one of this node's names."""
    node = Node("prx01a", ("proxy",))

    assert admit(dispatcher(node=node), delivery, dst=dst, src=src).node == "prx01a"


def test_the_node_is_asked_for_each_request():
    """A failover between two requests changes who takes the second."""
    state = "active"
    one = Dispatcher(lambda: Node("prx01a", (), {"state": frozenset({state})}))
    one.tasks = {"ping": task()}

    assert admit(one, dst="*|state=active")
    state = "standby"
    with pytest.raises(NotForThisNode):
        admit(one, dst="*|state=active")


# Whether there is such a task


@pytest.mark.parametrize("dst", SILENT)
def test_an_unknown_task_on_a_wildcard_is_passed_over(dst):
    """Somebody else may have it."""
    with pytest.raises(NotForThisNode) as caught:
        admit(dispatcher(), dst=dst, task="pnig")

    assert not isinstance(caught.value, Crowded)


@pytest.mark.parametrize("dst", NAMED)
def test_an_unknown_task_is_rejected_where_this_node_is_named(dst):
    """The client asked this very node, and gets a reason."""
    with pytest.raises(Rejected, match=r"^unknown task 'pnig'$"):
        admit(dispatcher(), dst=dst, task="pnig")


@pytest.mark.parametrize(
    ("backend", "channel"), [("redis", "control"), ("memory", "other"), ("redis", "other")]
)
def test_a_task_is_unknown_where_it_does_not_listen(backend, channel):
    """Who may publish on one channel need not be allowed on another."""
    with pytest.raises(Rejected, match="unknown task"):
        admit(dispatcher(), Delivery(b"", channel), backend, dst="prx01a")


def test_the_administrator_reaches_every_task():
    """By the local backend, whatever the task listens on."""
    assert admit(dispatcher(), Delivery(b"", "", True, "local-1"), LOCAL, dst="local")


def test_a_task_without_a_backend_listens_everywhere():
    """The agent's own tasks."""
    own = dispatcher(task(backend="", control_channel=""))

    assert admit(own, Delivery(b"", "any"), "redis")


# Whether there is room


@pytest.mark.parametrize("dst", NAMED)
@pytest.mark.parametrize("reason", ["stopping", "max_queued"])
def test_no_room_is_rejected_where_this_node_is_named(dst, reason):
    """Before `accepted`, with the reason."""
    one = dispatcher(task(gate=Gate() if reason == "stopping" else full_gate()))
    one.stopping = reason == "stopping"

    with pytest.raises(Rejected, match=reason):
        admit(one, dst=dst)


@pytest.mark.parametrize("dst", SILENT)
@pytest.mark.parametrize("reason", ["stopping", "max_queued"])
def test_no_room_on_a_wildcard_is_silent_but_counted(dst, reason):
    """A refusal would fail the call on all other nodes; silence alone would hide it."""
    one = dispatcher(task(gate=Gate() if reason == "stopping" else full_gate()))
    one.stopping = reason == "stopping"

    with pytest.raises(Crowded, match=reason):
        admit(one, dst=dst)


@pytest.mark.parametrize("dst", ELSEWHERE)
def test_no_room_is_nothing_to_tell_about_other_peoples_requests(dst):
    """They are not even counted."""
    one = dispatcher(task(gate=full_gate()))
    one.stopping = True

    with pytest.raises(NotForThisNode) as caught:
        admit(one, dst=dst)

    assert not isinstance(caught.value, Crowded)


def test_requests_at_work_are_held_up_to_a_limit(monkeypatch):
    """A hundred large requests would take many times their size in memory."""
    monkeypatch.setattr(dispatch, "MAX_HELD", 100)
    one = dispatcher()
    large = CONTROL._replace(payload=b"x" * 60)
    first = admit(one, large)

    with pytest.raises(Crowded, match="too large together"):
        admit(one, large)
    with pytest.raises(Rejected, match="too large together"):
        admit(one, large, dst="prx01a")
    one.release(first)
    assert admit(one, large)


def test_one_request_alone_is_never_too_large(monkeypatch):
    """How large one may be is decided where it is read."""
    monkeypatch.setattr(dispatch, "MAX_HELD", 100)

    assert admit(dispatcher(), CONTROL._replace(payload=b"x" * 200))


def test_a_task_brings_its_limits_to_the_gate():
    """When it comes into use, and not when its file is read."""
    gate = Gate(1, 1)
    one = task(gate=gate, max_running=3, max_queued=5)
    assert (gate.max_running, gate.max_queued) == (1, 1)

    one.adjust_gate()

    assert (gate.max_running, gate.max_queued) == (3, 5)


# How long it may take


@pytest.mark.parametrize(
    ("limit", "wish", "timeout"),
    [
        (9.5, None, 9.5),
        (9.5, 3, 3),
        (9.5, 0.5, 0.5),
        (9.5, 60, 9.5),
        (None, None, None),
        (None, 3, 3),
    ],
)
def test_a_client_may_ask_for_a_shorter_limit_only(limit, wish, timeout):
    """The task's own is the administrator's."""
    options = {"feedback_channel": "fb", "timeout": wish}

    assert admit(dispatcher(task(timeout=limit)), options=options).wishes.timeout == timeout


BAD_TIMEOUTS = [0, -1, "3", True, [], {}, 1e300]


@pytest.mark.parametrize("wish", BAD_TIMEOUTS)
def test_a_bad_limit_is_rejected_where_this_node_is_named(wish):
    """A known task with bad options."""
    options = {"feedback_channel": "fb", "timeout": wish}

    with pytest.raises(Rejected, match=r"^options\.timeout: found .*; expected seconds"):
        admit(dispatcher(), dst="prx01a", options=options)


@pytest.mark.parametrize("wish", BAD_TIMEOUTS)
def test_a_bad_limit_on_a_wildcard_is_accepted_and_fails(wish):
    """It may not be rejected, and silence would look like a node that is down."""
    admission = admit(dispatcher(), options={"feedback_channel": "fb", "timeout": wish})

    assert admission.fault.startswith("options.timeout: found ")
    assert admission.wishes.timeout == 9.5


def test_a_job_knows_when_it_is_ended():
    """In unix seconds, waiting included; a task without a limit has no deadline."""
    admission = admit(dispatcher(task(timeout=60)), options={"feedback_channel": "f", "timeout": 5})
    assert admission.job.deadline == pytest.approx(time.time() + 5, abs=2)

    assert admit(dispatcher(task(timeout=None))).job.deadline is None


def test_unknown_options_are_no_error():
    """`path` and `headers` occur in the field."""
    options = {"feedback_channel": "fb", "path": "/x/", "headers": '"A": 7', "timeot": 0}

    assert admit(dispatcher(), dst="prx01a", options=options).fault == ""


# Whether its arguments fit

HOST = Schema({"properties": {"host": {"type": "string"}}, "required": ["host"]})
MISFITS = [None, {}, {"host": 7}, '{"host": null}', "host", 7, [{"host": "a"}]]


@pytest.mark.parametrize("data", MISFITS)
@pytest.mark.parametrize("dst", NAMED)
def test_arguments_that_do_not_fit_are_rejected_where_this_node_is_named(dst, data):
    """Before `accepted`; the reason names the place."""
    with pytest.raises(Rejected, match=r"^data(\.host)?: found .*; expected "):
        admit(dispatcher(task(arguments=HOST)), dst=dst, data=data)


@pytest.mark.parametrize("data", MISFITS)
@pytest.mark.parametrize("dst", SILENT)
def test_arguments_that_do_not_fit_on_a_wildcard_are_accepted_and_fail(dst, data):
    """Protocol 5.2: a wildcard is never rejected."""
    admission = admit(dispatcher(task(arguments=HOST)), dst=dst, data=data)

    assert admission.fault.startswith("data")


@pytest.mark.parametrize("dst", ELSEWHERE)
def test_other_peoples_arguments_are_not_looked_at(dst):
    """They are not for this node, fitting or not."""
    with pytest.raises(NotForThisNode):
        admit(dispatcher(task(arguments=HOST)), dst=dst, data=7)


@pytest.mark.parametrize("data", [{"host": "a", "more": 1}, '{"host": "a", "more": 1}'])
@pytest.mark.parametrize("dst", ["*", "prx01a"])
def test_arguments_that_fit_are_admitted(dst, data):
    """As an object and as text, and with what the schema does not forbid."""
    admission = admit(dispatcher(task(arguments=HOST)), dst=dst, data=data)

    assert admission.fault == ""
    assert (admission.job.data, admission.job.arguments) == (data, {"host": "a", "more": 1})


def test_bad_options_are_told_before_bad_arguments():
    """One mistake at a time."""
    options = {"feedback_channel": "fb", "timeout": -1}

    with pytest.raises(Rejected, match=r"^options\.timeout"):
        admit(dispatcher(task(arguments=HOST)), dst="prx01a", data=7, options=options)


@pytest.mark.parametrize(
    ("schema", "taken"),
    [
        (None, True),
        (Schema({"properties": {"extra_args": {"type": "string"}}}), True),
        (Schema({"properties": {"host": {}}}), False),
        (Schema({}), False),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_extra_args_of_a_typed_task_are_those_its_schema_names(schema, taken, as_text):
    """Else they were a way around it."""
    data = {"host": "a", "extra_args": "-rf /"}

    one = dispatcher(task(arguments=schema))
    job = admit(one, data=json.dumps(data) if as_text else data).job

    assert ("extra_args" in job.arguments) is taken
    assert job.arguments["host"] == "a"


@pytest.mark.parametrize("dst", ["prx01a", "*"])
def test_what_is_masked_is_not_quoted_in_a_refusal(dst):
    """Not even the beginning of it."""
    one = task(arguments=Schema({"properties": {"pin": {"maxLength": 4}}}), mask=["data.pin"])

    try:
        reason = admit(dispatcher(one), dst=dst, data={"pin": "4711" * 100}).fault
    except Rejected as exc:
        reason = str(exc)

    assert reason == "data.pin: found a string; expected maxLength: 4"


def test_more_secrets_than_can_be_hidden_are_not_even_looked_for():
    """On a wildcard the job is accepted; a mask of all of them would hold up everybody."""
    many = [str(number) for number in range(99)]

    admission = admit(dispatcher(task(mask=["data.keys"])), data={"keys": many})

    assert "to be masked" in admission.fault
    assert not admission.secrets


def test_secrets_are_found_in_data_that_is_no_object():
    """A schema may ask for an array."""
    for data in ([{"pin": "4711"}], '[{"pin": "4711"}]'):
        assert admit(dispatcher(task(mask=["data.0.pin"])), data=data).secrets == {"4711"}


def test_the_agent_s_own_tasks_answer_while_others_are_waited_for():
    """Who wants to know what holds up a stop, or end it, asks then."""
    one = dispatcher(task(), task(name="agent.jobs", backend=""))
    one.stopping = True

    with pytest.raises(NotForThisNode):
        admit(one)
    assert admit(one, task="agent.jobs").task.name == "agent.jobs"
    one.stopped = True
    with pytest.raises(NotForThisNode):
        admit(one, task="agent.jobs")
