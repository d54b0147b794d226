"""Part 5 of the protocol: rules 1, 2, 4 to 6, 8 and 10."""

import json
import time
import uuid

import pytest

from .wire import FIELDS

pytestmark = pytest.mark.redis

FAILING = ["exits_with_3", "missing_program", "unknown_user", "killed", "not_executable",
           "too_long"]  # fmt: skip


# Rule 1


@pytest.mark.parametrize(
    ("task", "dst"),
    [
        ("whoami", "web99"),
        ("whoami", "sp1|state=inactive"),
        ("agent.ping", "web99"),
        ("no_such_task", "*"),
        ("no_such_task", "prx*"),
        ("no_such_task", "sp?,prx01[ab]"),
        ("no_such_task", "*|state=active"),
        ("no_such_task", "web99"),
        ("no_such_task", "sp1|state=inactive"),
        ("agent.no_such_task", "*"),
    ],
)
def test_rule_1_silence_for_others_and_for_unknown_tasks_on_wildcards(listener, task, dst):
    """Not one message: a single rejected makes a client fail the whole call."""
    ref = listener.send(task, dst)
    listener.fence()

    assert listener.of(ref) == []


# Rule 2


@pytest.mark.parametrize(
    ("dst", "nodes"),
    [
        ("sp1", ["sp1"]),
        ("prx01a", ["prx01a", "prx01a"]),
        ("web99,sp1", ["sp1"]),
        ("sp1,prx*", ["sp1"]),
        ("sp1|state=active", ["sp1"]),
    ],
)
def test_rule_2_rejected_where_the_node_is_named(listener, dst, nodes):
    """An unknown task is rejected by each node that dst names literally, and by no other."""
    ref = listener.send("no_such_task", dst)
    listener.fence()

    bodies = listener.of(ref)
    assert [body["src"] for body in bodies] == nodes
    for body in bodies:
        assert set(body) == FIELDS
        assert body["status"] == "rejected"
        assert body["reason"]


ODD_OPTIONS = [{"timeout": "soon"}, {"timeout": -1}, {"timeout": {}}, {"ttl": "x"}, {"stream": 7}]


@pytest.mark.parametrize("options", ODD_OPTIONS, ids=json.dumps)
def test_rule_2_bad_options_never_reject_a_wildcard(listener, options):
    """Bad options may be ignored or refused; to a wildcard a refusal is silence."""
    ref = listener.send("whoami", "*|status=offline", options=options)
    listener.fence()

    if listener.of(ref):
        listener.talk(ref)
        assert listener.statuses(ref) in (["accepted", "done"], ["accepted", "error"])


@pytest.mark.parametrize("options", ODD_OPTIONS, ids=json.dumps)
def test_rule_2_bad_options_get_one_answer_where_the_node_is_named(listener, options):
    """Rejected, or accepted and one end: never both, never nothing."""
    ref = listener.send("whoami", "sp1", options=options)
    listener.fence()
    listener.talk(ref)

    assert listener.statuses(ref) in (["rejected"], ["accepted", "done"], ["accepted", "error"])


def test_rule_2_a_full_queue_rejects_where_the_node_is_named(listener):
    """One runs, one waits, two are too many and told so."""
    refs = listener.send_all([listener.make("short_queue", "sp1") for _ in range(4)])
    listener.talk_all(refs)

    ends = [listener.statuses(ref) for ref in refs]
    assert ends == [["accepted", "done"]] * 2 + [["rejected"]] * 2
    assert all(listener.of(ref)[0]["reason"] for ref in refs[2:])


def test_rule_2_a_full_queue_is_silent_on_a_wildcard(listener):
    """Where the node is not named, what is beyond the queue gets no answer."""
    refs = listener.send_all([listener.make("short_queue", "sp?") for _ in range(4)])
    listener.talk_all(refs[:2])
    listener.fence()

    ends = [listener.statuses(ref) for ref in refs]
    assert ends == [["accepted", "done"]] * 2 + [[]] * 2


# Rules 4 and 5


@pytest.mark.parametrize("task", FAILING)
def test_rule_4_accepted_then_exactly_one_error(listener, task):
    """Whatever goes wrong, there is one terminal message, and it says why."""
    ref = listener.send(task, "sp1")
    listener.talk(ref)
    listener.fence()

    accepted, error = listener.of(ref)
    assert (accepted["status"], error["status"]) == ("accepted", "error")
    assert error["reason"].strip()
    assert isinstance(error["data"], str)


def test_rule_4_an_exit_code_and_the_last_words_are_the_reason(listener):
    """The reason has the code and the last line of stderr; data is stdout."""
    _, error = listener.ask("exits_with_3", "sp1")

    assert "3" in error["reason"]
    assert "last words" in error["reason"]
    assert "first" not in error["reason"]
    assert error["data"] == "half a result\n"


def test_rule_4_a_killed_program_is_an_error_with_its_output(listener):
    """What the program said before it was killed is not lost."""
    _, error = listener.ask("killed", "sp1")

    assert error["data"] == "alive\n"


def test_rule_4_a_time_limit_is_one_error_for_good(listener):
    """Nothing more comes when the program has been ended for good, 5 s later."""
    ref = listener.send("too_long", "sp1")
    listener.talk(ref)
    end = time.monotonic() + 6
    listener.hear_until(lambda: time.monotonic() > end, 7)
    listener.fence()

    assert listener.statuses(ref) == ["accepted", "error"]
    assert 0.4 < listener.at(ref, "error") - listener.at(ref, "accepted") < 1.1


def test_rule_5_accepted_always_comes_first(listener):
    """Of 100 jobs that end at once, not one overtakes its accepted."""
    refs = listener.send_all([listener.make("noop", "sp1") for _ in range(100)])
    listener.talk_all(refs)

    assert [listener.statuses(ref) for ref in refs] == [["accepted", "done"]] * 100


# Rule 6

OUTPUTS = {
    "nothing": b"",
    "no line end": b"ok",
    "many line ends": b"\n\nok\n\n\n",
    "tabs": b"{\n\tentry: 1\n\t\t{ name: x }\n}\n",
    "carriage returns": b"a\r\nb\r\n",
    "blanks around": b"  x  \n ",
    "UTF-8": "smörgås \u2028 \U0001f600 \ufeff\n".encode(),
    "no UTF-8": b"caf\xe9 \xff\xfe\xc3\x28 \xf0\x9f ok \xed\xa0\x80\n",
    "nulls and controls": bytes(range(32)) + b"\x7f",
    "looks like JSON": b'{"a": NaN, "b": "\\ud800"}\n',
    "quotes": b"\"'\\ \\n \\u0041\n",
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_rule_6_stdout_arrives_as_it_came(fleet, listener, name):
    """Decoded as UTF-8 with replacement, nothing stripped, nothing added."""
    path = fleet.file(f"output-{uuid.uuid4()}", OUTPUTS[name])

    _, done = listener.ask("cat", "sp1", data={"extra_args": str(path)})

    assert done["status"] == "done"
    assert done["data"] == OUTPUTS[name].decode("utf-8", "replace")


# Rule 8


@pytest.mark.parametrize(
    "extra",
    [
        "ipban",
        "ipban 11.11.11.1",
        "auth user@dom::auth_count",
        "  many   blanks  ",
        "",
        "\"one word\" 'two words'",
        "a;reboot ;reboot;",
        "$(id) `id` ${HOME} $HOME ~ * ? [a]",
        "x | y > /dev/null < z & !! # no \\ comment \\n",
        "-rf --help -- %s %d",
        "smörgås \U0001f600",
    ],
)
def test_rule_8_extra_args_are_words_and_never_syntax(listener, extra):
    """Split at blanks; quotes and everything a shell knows are ordinary characters."""
    _, done = listener.ask("print_words", "sp1", data={"extra_args": extra})

    assert done["data"] == "".join(f"[{word}]\n" for word in ["own", *extra.split(" ")] if word)


def test_rule_8_the_administrators_string_is_split_like_a_shell(listener):
    """Quotes have a meaning in the task file, and none in what comes over the wire."""
    _, done = listener.ask("args_as_string", "sp1", data={"extra_args": "'a b'"})

    assert done["data"] == "[one word]\n[two]\n['a]\n[b']\n"


def test_rule_8_a_null_byte_is_an_error_and_no_crash(listener):
    """No program can be given one; the rule that every accepted job ends still holds."""
    ref = listener.send("print_words", "sp1", data={"extra_args": "a\0b"})
    listener.talk(ref)
    listener.fence()

    assert listener.statuses(ref) in (["accepted", "error"], ["rejected"])


# Rule 10


def test_rule_10_twins_both_answer_and_facts_tell_them_apart(listener):
    """One name, two nodes: both are asked by name, one by a fact."""
    both = listener.send("whoami", "prx01a")
    one = listener.send("whoami", "prx01a|status=offline")
    listener.talk(both, ends=2)
    listener.talk(one)
    listener.fence()

    data = sorted(body["data"] for body in listener.of(both) if body["status"] == "done")
    assert data == ["node 1\n", "node 2\n"]
    assert [body["data"] for body in listener.of(one)][-1] == "node 2\n"
    assert len(listener.of(one)) == 2
