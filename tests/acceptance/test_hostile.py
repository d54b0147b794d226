"""Whatever comes over the bus or out of a program: the daemon answers and stays small."""

import json
import random
import signal
import time

import pytest

from .harness import World, command
from .processes import until
from .wire import answered

pytestmark = pytest.mark.redis

MESSAGES = 25_000
BATCH = 500
MIB = 1024 * 1024
GROWTH_LIMIT = 8 * MIB  # resident bytes after the storm
OUTPUT_LIMIT = 200 * MIB  # resident bytes while a program prints without end
LOG_LIMIT = 200_000  # bytes of log for the whole storm
RUNNABLE = 250  # messages of the storm which ask for a job that can run

TOKENS = ["*", "?", "[", "]", "!", "|", ";", "=", "+", ",", " ", "state", "active", "role", "sp1",
          "\0", "ö", "\t", "\n", "[a-", "[!", "**", "\\", "%s", "{}", "../"]  # fmt: skip
ODD = [None, True, False, 0, -1, 10**30, 1.5, "", "x", [], [[]], {}, {"": None}, "\ud800", "\0",
       ["sp1"], {"feedback_channel": "x"}, "NaN", "1e999"]  # fmt: skip


def valid(dice, **fields):
    """Return a sound request that no node has a task for."""
    return {
        "uuid": f"h-{dice.getrandbits(64):x}",
        "task": "no_such_task",
        "src": "web01a",
        "dst": "*",
        "options": {"feedback_channel": "hostile"},
        **fields,
    }


def encoded(body):
    return json.dumps(body).encode()


def broken_json(dice):
    text = encoded(valid(dice))
    return dice.choice([
        text[: dice.randrange(len(text))],
        text + text,
        text[1:],
        b"",
        b"\0",
        b"}" * dice.randrange(1, 50),
        text.replace(b'"', b"'"),
        b"\xef\xbb\xbf" + text,
        text.decode().encode("utf-16"),
        dice.randbytes(dice.randrange(200)),
    ])  # fmt: skip


def no_object(dice):
    return encoded(dice.choice([None, 1, "x", [], [valid(dice)], True, -0.0, 10**400]))


def nested(dice):
    depth = dice.choice([10, 100, 500, 1000, 1100, 2000])
    inner = b'{"a":' * depth + b"1" + b"}" * depth
    return encoded(valid(dice, data=1)).replace(b'"data": 1', b'"data": ' + inner)


def brackets(dice):
    depth = dice.choice([1024, 1025, 50_000, 100_000])
    return dice.choice([b"[", b'{"a":']) * depth + b"]" * dice.choice([0, depth])


def invalid_utf8(dice):
    text = encoded(valid(dice))
    place = dice.randrange(len(text))
    junk = dice.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x28"])
    return text[:place] + junk + text[place:]


def numbers(dice):
    number = dice.choice([b"NaN", b"Infinity", b"-Infinity", b"1e9999", b"9" * 4301, b"-0",
                          b"9" * 5000, b"1" + b"0" * 400, b"0x10", b"01", b"1."])  # fmt: skip
    key = dice.choice(["uuid", "timestamp", "data", "task", "dst"])
    return encoded(valid(dice, **{key: "@@"})).replace(b'"@@"', number)


def wrong_fields(dice):
    body = valid(dice)
    for key in dice.sample(sorted(body), dice.randrange(1, 4)):
        if dice.random() < 0.4:
            del body[key]
        else:
            body[key] = dice.choice(ODD)
    return encoded(body)


def crazy_dst(dice):
    return encoded(valid(dice, dst="".join(dice.choices(TOKENS, k=dice.randrange(1, 40)))))


def long_dst(dice):
    kind = dice.choice(
        ["*a", "[ab]", "*|state=active,", "?", "sp2,", "*|a=b;", "*|role=x+", "[", "a"]
    )
    return encoded(valid(dice, dst=(kind * 100_000)[:100_000]))


def odd_options(dice):
    options = {"feedback_channel": dice.choice(["hostile", *ODD])}
    for key in ("timeout", "ttl", "stream", "result", "feedback_stream", "path", "zz"):
        if dice.random() < 0.5:
            options[key] = dice.choice(ODD)
    return encoded(valid(dice, options=options))


def surrogates(dice):
    key = dice.choice(["uuid", "task", "src", "dst", "data"])
    return encoded(valid(dice, **{key: dice.choice(["\ud800", "a\udfff", "\udc00\ud800", "\0"])}))


def huge_keys(dice):
    return encoded(valid(dice, data={f"k{n}": n for n in range(dice.randrange(2000))}))


KINDS = [broken_json, no_object, nested, invalid_utf8, numbers, wrong_fields, crazy_dst,
         odd_options, surrogates]  # fmt: skip
BIG_KINDS = [long_dst, huge_keys, brackets]  # one message in 150, they are 100 kB and more


def storm(dice):
    """Yield MESSAGES hostile messages, the same ones in every run."""
    for number in range(MESSAGES):
        if number % 150 == 0:
            yield dice.choice(BIG_KINDS)(dice)
        else:
            yield dice.choice(KINDS)(dice)


def runnable(dice, channel):
    """Return a request that may be taken, odd in its src, data, options or uuid."""
    body = valid(dice, task="words", options={"feedback_channel": channel})
    key = dice.choice(["src", "data", "timeout", "uuid"])
    odd = dice.choice([*ODD, "a\0b", "\udfffx", "x" * 200_000])
    if key == "timeout":
        body["options"]["timeout"] = odd
    elif key == "data":
        body["data"] = dice.choice([odd, {"extra_args": odd}, json.dumps({"extra_args": odd})])
    elif key == "uuid":
        body["uuid"] += odd if isinstance(odd, str) else ""
    else:
        body["src"] = odd
    return body


def send_storm(listener, messages):
    pipe = listener.redis.pipeline(transaction=False)
    for number, message in enumerate(messages, 1):
        pipe.publish(listener.control, message)
        if number % BATCH == 0:
            pipe.execute()
    pipe.execute()


def warm_up(listener):
    """Let it do once what it will do again: run jobs, parse destinations, answer."""
    listener.talk_all(
        listener.send_all([listener.make("words", data={"extra_args": "a b"}) for _ in range(60)])
    )
    for dst in ("*|state=active;role=proxy", "sp?", "x*,y?|a=b"):
        listener.send("no_such_task", dst)
    listener.fence()


def ping_seconds(listener):
    start = time.monotonic()
    listener.ask("agent.ping", "sp1", seconds=10)
    return time.monotonic() - start


def settle(daemon, before, seconds=20):
    until(
        lambda: daemon.rss - before < GROWTH_LIMIT,
        seconds,
        f"less than {GROWTH_LIMIT} above {before} bytes, now {daemon.rss},",
    )
    print(f"grown by {(daemon.rss - before) / MIB:.1f} MiB")


def start(world, **tasks):
    tasks = {"words": command("/usr/bin/printf", "[%s]"), **tasks}
    facts = {"state": "active", "role": ["proxy"]}
    return world.daemon(facts=facts, tasks=tasks)


@pytest.fixture
def patient():
    """A world whose redis drops no subscriber, so that every message really arrives."""
    with World("--client-output-buffer-limit", "pubsub", "0", "0", "0") as world:
        yield world


def test_hostile_messages(patient):
    """25,000 of them: alive, answering within 2 s, 8 MiB at most, a log that can be read."""
    daemon = start(patient)
    listener = patient.listen()
    warm_up(listener)
    before = daemon.rss
    begun = time.monotonic()

    send_storm(listener, storm(random.Random(1)))
    seconds = ping_seconds(listener)
    print(f"storm and ping took {time.monotonic() - begun:.1f} s, the ping {seconds:.3f} s")

    assert daemon.alive
    assert seconds < 2
    settle(daemon, before)
    assert ping_seconds(listener) < 2
    assert listener.ask("words", "sp1")[-1]["data"] == "[]"
    assert len(daemon.log) < LOG_LIMIT


def test_odd_requests_that_can_run_are_each_ended_once(world):
    """Null bytes, lone surrogates, huge words: nothing, or accepted and one end, or rejected."""
    daemon = start(world)
    listener = world.listen()
    warm_up(listener)
    before = daemon.rss
    dice = random.Random(7)

    bodies = [runnable(dice, listener.channel) for _ in range(RUNNABLE)]
    listener.send_all(bodies)
    listener.fence(20)
    accepted = [m.body["ref"] for m in listener.heard if m.body["status"] == "accepted"]
    listener.talk_all(accepted, seconds=20)
    listener.fence()

    assert len(set(accepted)) > RUNNABLE / 4
    for body in bodies:
        ends = listener.statuses(body["uuid"])
        assert ends in ([], ["rejected"], ["accepted", "done"], ["accepted", "error"]), body
    assert daemon.alive
    settle(daemon, before)


@pytest.mark.parametrize("limit", ["32mb 8mb 60", "0 0 0"], ids=["dropped", "delivered"])
def test_one_message_of_64_mib(limit):
    """Redis drops a subscriber for it, or does not if so configured: both must be survived."""
    with World("--client-output-buffer-limit", "pubsub", *limit.split()) as world:
        daemon = start(world)
        listener = world.listen()
        warm_up(listener)
        before = daemon.rss
        # Another feedback channel, and to nobody: no answer is asked for.
        body = listener.make("words", "web99", data="x" * (64 * MIB))

        with world.listener() as other:
            other.redis.publish(other.control, json.dumps(body))
            answered(other, "sp1", 15)

            assert ping_seconds(other) < 2
        settle(daemon, before)
        assert len(daemon.log) < LOG_LIMIT


FLOODS = {
    "stdout": ["exec head -c 3000000000 /dev/zero"],
    "stdout in lines": ["yes 'CallID:[id] unknown' | head -c 3000000000"],
    "deaf": ["trap '' PIPE TERM", "head -c 3000000000 /dev/zero"],
}


@pytest.mark.parametrize("kind", FLOODS)
def test_three_gigabytes_of_output(world, kind):
    """Beyond max_output (64 MiB by default) the tree is ended and the error says so."""
    flood = world.script("flood", *FLOODS[kind])
    daemon = start(world, flood=command(flood, timeout=60))
    listener = world.listen()
    warm_up(listener)
    before, helpers = daemon.rss, set(daemon.descendants)

    _, *parts = listener.ask("flood", "sp1", seconds=60)

    print(f"at most {(daemon.peak - before) / MIB:.0f} MiB more, {len(parts)} messages")
    assert {part["status"] for part in parts} == {"error"}
    assert [part["chunk"] for part in parts] == list(range(1, parts[0]["chunks"] + 1))
    assert all("max_output" in part["reason"] for part in parts)
    assert daemon.peak - before < OUTPUT_LIMIT
    until(lambda: set(daemon.descendants) <= helpers, 7, "the end of the tree")
    assert ping_seconds(listener) < 2


def test_a_flood_on_stderr(world):
    """Only its last line is wanted; a gigabyte of it takes no memory and no harm is done."""
    flood = world.script("flood", "yes x | head -c 1000000000 >&2", "echo the end >&2", "exit 4")
    daemon = start(world, flood=command(flood, timeout=60))
    listener = world.listen()
    warm_up(listener)
    before, helpers = daemon.rss, set(daemon.descendants)

    accepted, error = listener.ask("flood", "sp1", seconds=60)

    assert (accepted["status"], error["status"]) == ("accepted", "error")
    assert daemon.peak - before < OUTPUT_LIMIT
    until(lambda: set(daemon.descendants) <= helpers, 7, "the end of the tree")


def test_a_signal_storm_does_no_harm(world):
    """SIGHUP fifty times in a row: read again, and nothing else."""
    daemon = start(world)
    listener = world.listen()

    for _ in range(50):
        daemon.signal(signal.SIGHUP)
        listener.ask("words", "sp1")

    assert daemon.alive
    assert listener.ask("words", "sp1")[-1]["data"] == "[]"
