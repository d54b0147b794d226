"""Live output (`options.stream`) and how a process ended (`options.result`): protocol.md 6."""

import json
import os
import signal
import statistics
import sys
import time

import pytest

from .harness import World, command
from .processes import until
from .test_local import Connection
from .wire import FIELDS, decode

pytestmark = pytest.mark.redis

MIB = 1024 * 1024
PIECE_LIMIT = 64 * 1024  # bytes of one message, all of it
RATE = 20  # messages a second and job
FLUSH_LIMIT = 0.05  # seconds from the write to the message
BUSY = 0.2  # seconds more on a machine that has other work
PROMPT = 0.5  # seconds for the answer to somebody else, on such a machine
GROWTH_LIMIT = 16 * MIB  # resident bytes while a program is held back
HELD_BACK = 800_000  # bytes of 1 MiB which the daemon has taken while nobody takes its messages
PROGRESS_FIELDS = FIELDS | {"stream", "seq", "offset"}
RESULT_FIELDS = {"exit_code", "signal", "stderr", "started", "duration", "truncated"}
LIVE = {"stream": True}
BOTH = {"stream": True, "result": True}

# Characters of one to four bytes, and a line without an end.
TEXT = ("a smörgåsbord: 10 € für 𝄞 ✓\n" * 40 + "the end").encode()
BROKEN = (
    b"ok \xff\xfe \xc3 \xe2\x82 \xf0\x9f\x98 \xed\xa0\x80 \xc0\x80 \x00 \xf0\x9f\x98\x80\n" * 12
)

# Each is a program: its argument is a file whose bytes it writes.
SNIPPETS = {
    "both": """
import os, time
for n in range(12):
    os.write(1, b"out %d\\n" % n)
    os.write(2, b"err %d\\n" % n)
    time.sleep(0.03)
""",
    "trickle": """
import os, sys, time
data = open(sys.argv[1], "rb").read()
for n in range(0, len(data), 7):
    os.write(1, data[n:n + 7])
    if n % 4 == 0:
        time.sleep(0.011)
""",
    "clock": """
import os, time
for n in range(15):
    os.write(1, b"%.6f\\n" % time.monotonic())
    time.sleep(0.113)
""",
    "chatty": """
import os, time
end = time.monotonic() + 2
while time.monotonic() < end:
    os.write(1, b"x\\n")
    os.write(2, b"y\\n")
    time.sleep(0.001)
""",
    "pour": """
import os, sys
block = b"0123456789abcde\\n" * 4096
for _ in range(int(sys.argv[1]) // len(block)):
    os.write(1, block)
""",
    "fails": """
import os, sys
os.write(1, b"before\\n")
os.write(2, b"first\\nwhy not\\n")
sys.exit(7)
""",
    "dies": """
import os, signal
os.write(2, b"last words")
os.kill(os.getpid(), signal.SIGUSR1)
""",
    "long_stderr": """
import os, sys
os.write(2, b"a" * 1000)
for n in range(20000):
    os.write(2, b"line %07d\\n" % n)
""",
    "slow": """
import os, time
os.write(1, b"begun\\n")
os.write(2, b"trouble\\n")
time.sleep(30)
""",
}  # fmt: skip


def live_tasks(world):
    scripts = {name: world.file(f"{name}.py", text) for name, text in SNIPPETS.items()}
    python = sys.executable
    tasks = {
        name: command(python, "-S", scripts[name])
        for name in ("both", "clock", "chatty", "fails", "dies", "long_stderr")
    }
    for name, content in (("text", TEXT), ("broken", BROKEN)):
        tasks[name] = command(python, "-S", scripts["trickle"], world.file(name, content))
    leaves = world.script("leaves", "echo bye", "echo why >&2", '(setsid sleep 600 >&2 &)',
                          "sleep 600 &")  # fmt: skip
    tasks |= {
        "leaves": command(leaves),
        "hello": command("/bin/echo", "hello"),
        "silent": command("/bin/true"),
        "slow": command(python, "-S", scripts["slow"], timeout=1),
        "pour_2": command(python, "-S", scripts["pour"], 2 * MIB),
        "pour_1": command(python, "-S", scripts["pour"], MIB),
        "pour_20": command(python, "-S", scripts["pour"], 20 * MIB, timeout=3),
        "zeros": command("/usr/bin/head", "-c", 300_000, "/dev/zero"),
        "too_much": command("/usr/bin/head", "-c", 400_000, "/dev/zero",
                            broker_options={"max_output": 300_000}),
    }  # fmt: skip
    return tasks


@pytest.fixture(scope="module")
def node():
    with World() as world:
        world.daemon(tasks=live_tasks(world))
        yield world


@pytest.fixture
def ear(node):
    with node.listener() as listener:
        yield listener


def pieces(bodies, stream):
    return [b for b in bodies if b["status"] == "progress" and b["stream"] == stream]


def joined(bodies, stream="stdout"):
    return "".join(body["data"] for body in pieces(bodies, stream))


def check_order(bodies, end="done"):
    """The rules which hold for every job that is read along."""
    accepted, *progress, last = bodies
    assert accepted["status"] == "accepted"
    assert {body["status"] for body in progress} <= {"progress"}
    assert last["status"] == end
    assert [body["seq"] for body in progress] == list(range(1, len(progress) + 1))
    for body in progress:
        assert set(body) == PROGRESS_FIELDS
        assert body["stream"] in ("stdout", "stderr")
        assert (body["chunk"], body["chunks"], body["reason"]) == (1, 1, "")
        assert body["data"]
    assert len({body["uuid"] for body in bodies}) == len(bodies)


def check_offsets(bodies, stream, raw):
    """Each piece stands at its offset in the *raw* bytes, and nothing is between them."""
    found = pieces(bodies, stream)
    starts = [body["offset"] for body in found] + [len(raw)]
    assert starts[0] == 0
    for body, start, end in zip(found, starts, starts[1:], strict=False):
        assert body["data"] == raw[start:end].decode("utf-8", "replace")


def most_in_a_second(bodies):
    """How many messages were dispatched within one second at most, by their own time."""
    times = sorted(body["timestamp"] for body in bodies)
    return max(sum(0 <= later - first < 1 for later in times) for first in times)


def bytes_taken(client, ref):
    """What the daemon has read from the program of *ref*, asked by the local socket."""
    (job,) = client.end_of(client.send("agent.jobs", data={"ref": ref}))[-1]["data"]
    return job["output_bytes"]


def ping_time(listener):
    begun = time.monotonic()
    listener.ask("agent.ping", "sp1", seconds=10)
    return time.monotonic() - begun


def test_stdout_and_stderr_come_apart_in_order_before_the_end(ear):
    """A client shows them apart and counts on `seq` to see that it missed nothing."""
    bodies = ear.ask("both", "sp1", options=LIVE)

    check_order(bodies)
    check_offsets(bodies, "stdout", "".join(f"out {n}\n" for n in range(12)).encode())
    check_offsets(bodies, "stderr", "".join(f"err {n}\n" for n in range(12)).encode())
    assert joined(bodies) == bodies[-1]["data"]
    assert len(pieces(bodies, "stdout")) > 2


@pytest.mark.parametrize(("task", "raw"), [("text", TEXT), ("broken", BROKEN)])
def test_characters_are_never_torn(ear, task, raw):
    """Writes of 7 bytes cut characters anywhere; offsets stay those of the bytes."""
    bodies = ear.ask(task, "sp1", options=LIVE)

    check_order(bodies)
    check_offsets(bodies, "stdout", raw)
    assert joined(bodies) == bodies[-1]["data"] == raw.decode("utf-8", "replace")
    assert len(bodies) > 5


def test_what_is_written_is_sent_within_50_ms(ear):
    """The program prints the time of each write; the bus and this test take a little more."""
    ref = ear.send("clock", "sp1", options=LIVE)
    ear.talk(ref)

    late = [
        message.at - float(line)
        for message in ear.heard
        if message.body["ref"] == ref and message.body["status"] == "progress"
        for line in message.body["data"].splitlines()
    ]
    print(f"live: median {statistics.median(late):.4f} s, slowest {max(late):.4f} s")
    assert len(late) == 15
    assert statistics.median(late) < FLUSH_LIMIT
    assert max(late) < FLUSH_LIMIT + BUSY


def test_many_small_writes_are_coalesced(ear):
    """A thousand writes in two seconds are no thousand messages, and none waits for long."""
    bodies = ear.ask("chatty", "sp1", options=LIVE)

    check_order(bodies)
    assert joined(bodies) == bodies[-1]["data"]
    assert most_in_a_second(bodies[1:-1]) <= RATE + 2
    assert len(bodies) > RATE


@pytest.mark.parametrize("task", ["pour_1", "zeros"])
def test_no_message_is_longer_than_64_kib(ear, task):
    """NUL takes six bytes of JSON: it is the message that is limited, not the text."""
    ref = ear.send(task, "sp1", options=LIVE)
    bodies = ear.talk(ref)

    raws = [m.raw for m in ear.heard if m.body["status"] == "progress"]
    print(f"{len(raws)} messages, the longest {max(map(len, raws))} bytes")
    check_order(bodies)
    assert max(map(len, raws)) <= PIECE_LIMIT
    assert most_in_a_second(pieces(bodies, "stdout")) <= RATE + 2
    assert joined(bodies) == bodies[-1]["data"]


@pytest.mark.concurrency
def test_a_program_that_writes_more_is_slowed_and_nobody_else(world):
    """20 MB with a limit of 20 messages a second: its pipe is full, and that is all."""
    daemon = world.daemon(tasks=live_tasks(world))
    listener = world.listen()
    listener.talk_all([listener.send("hello", "sp1", options=LIVE) for _ in range(20)])
    before = daemon.rss

    ref = listener.send("pour_20", "sp1", options=LIVE)
    pings = []
    while not listener.ended(ref):
        pings.append(ping_time(listener))
        assert listener.ask("hello", "sp1")[-1]["data"] == "hello\n"
    bodies = listener.of(ref)

    median, grown = statistics.median(pings), (daemon.peak - before) / MIB
    print(f"pings: median {median:.4f} s, slowest {max(pings):.4f} s; {grown:.1f} MiB more")
    check_order(bodies, "error")
    assert "time limit" in bodies[-1]["reason"]
    assert len(joined(bodies)) < 3.5 * RATE * PIECE_LIMIT
    assert bodies[-1]["data"].startswith(joined(bodies))
    assert max(pings) < PROMPT
    assert daemon.peak - before < GROWTH_LIMIT


@pytest.mark.concurrency
def test_a_bus_that_hangs_holds_the_program_back(world):
    """redis-server is stopped for a while: nothing is lost and nothing piles up."""
    daemon = world.daemon(tasks=live_tasks(world))
    listener = world.listen()
    listener.talk_all([listener.send("hello", "sp1", options=LIVE) for _ in range(20)])
    before = daemon.rss
    ref = listener.send("pour_1", "sp1", options=LIVE)
    listener.hear_until(lambda: len(listener.of(ref)) > 5)

    os.kill(world.server.process.pid, signal.SIGSTOP)
    try:
        with Connection(daemon.socket) as client:
            begun = time.monotonic()
            turns = 0
            while time.monotonic() - begun < 1.5:
                client.end_of(client.send("agent.ping"))
                turns += 1
            held = bytes_taken(client, ref)
    finally:
        os.kill(world.server.process.pid, signal.SIGCONT)
    bodies = listener.talk(ref, seconds=20)

    print(f"{turns} local pings, {(daemon.peak - before) / MIB:.1f} MiB more")
    check_order(bodies)
    assert turns > 20
    assert held < HELD_BACK
    assert joined(bodies) == bodies[-1]["data"]
    assert daemon.peak - before < GROWTH_LIMIT


@pytest.mark.concurrency
def test_a_local_client_that_does_not_read_holds_only_its_own_job_back(world):
    """Its program waits; the others on the same socket are answered; then it gets it all."""
    daemon = world.daemon(tasks=live_tasks(world))
    with Connection(daemon.socket) as warm:
        warm.end_of(warm.send("hello", options=LIVE))
    before = daemon.rss
    with Connection(daemon.socket) as deaf, Connection(daemon.socket) as other:
        ref = deaf.send("pour_1", options=LIVE)
        begun = time.monotonic()
        slowest = 0.0
        while time.monotonic() - begun < 1.5:
            start = time.monotonic()
            other.end_of(other.send("agent.ping"))
            other.end_of(other.send("hello"))
            slowest = max(slowest, time.monotonic() - start)
        held, grown = bytes_taken(other, ref), daemon.peak - before
        bodies = []
        while not bodies or bodies[-1]["status"] in ("accepted", "progress"):
            bodies.append(decode(deaf.lines.readline()))

    print(f"slowest ping and hello {slowest:.4f} s, {grown / MIB:.1f} MiB more")
    assert {body["ref"] for body in bodies} == {ref}
    check_order(bodies)
    assert joined(bodies) == bodies[-1]["data"]
    assert slowest < PROMPT
    assert held < HELD_BACK
    assert grown < GROWTH_LIMIT


def test_sixty_jobs_are_read_along_side_by_side(ear):
    """Each has its own numbers and its own pace."""
    refs = ear.send_all([ear.make("both", "sp1", options=BOTH) for _ in range(60)])
    ear.talk_all(refs, seconds=20)

    for ref in refs:
        check_order(ear.of(ref))
        assert joined(ear.of(ref)) == ear.of(ref)[-1]["data"]
        assert joined(ear.of(ref), "stderr") == ear.of(ref)[-1]["result"]["stderr"]


def test_a_job_that_fails_has_said_it_all_before(ear):
    """The error is the last message here too, with the same reason as ever."""
    bodies = ear.ask("fails", "sp1", options=LIVE)

    check_order(bodies, "error")
    assert (joined(bodies), joined(bodies, "stderr")) == ("before\n", "first\nwhy not\n")
    assert bodies[-1]["data"] == "before\n"
    assert bodies[-1]["reason"] == ear.ask("fails", "sp1")[-1]["reason"]
    assert "why not" in bodies[-1]["reason"]


def test_a_silent_job_has_no_progress(ear):
    """A message without data would be a lie about `seq`."""
    assert [b["status"] for b in ear.ask("silent", "sp1", options=LIVE)] == ["accepted", "done"]


def test_what_was_said_before_a_time_limit_was_sent_before_it(ear):
    """The error does not overtake the output, nor wait for it."""
    bodies = ear.ask("slow", "sp1", options=BOTH)

    check_order(bodies, "error")
    assert (joined(bodies), joined(bodies, "stderr")) == ("begun\n", "trouble\n")
    assert bodies[-1]["data"] == "begun\n"
    assert bodies[-1]["result"]["stderr"] == "trouble\n"


def test_children_that_hold_the_pipes_delay_nothing(node, ear):
    """A job is over with its leader, also where both pipes are read as they come."""
    bodies = ear.ask("leaves", "sp1", options=BOTH)

    check_order(bodies)
    assert (joined(bodies), joined(bodies, "stderr")) == ("bye\n", "why\n")
    assert bodies[-1]["timestamp"] - bodies[0]["timestamp"] < 2
    until(lambda: not node.daemons[0].descendants, 7, "the end of the children")


def test_a_stop_of_the_daemon_is_told_to_who_reads_along(world):
    """What was said, then the error; exit 0."""
    daemon = world.daemon(tasks=live_tasks(world), agent={"grace": 0.2})
    listener = world.listen()
    ref = listener.send("pour_20", "sp1", options=LIVE)
    listener.hear_until(lambda: len(listener.of(ref)) > 3)

    assert daemon.stop() == 0
    bodies = listener.talk(ref, seconds=2)
    check_order(bodies, "error")
    assert bodies[-1]["data"].startswith(joined(bodies))


@pytest.mark.parametrize("options", [{}, {"stream": False, "result": False},
                                     {"stream": None, "result": None}])  # fmt: skip
@pytest.mark.parametrize("task", ["both", "fails", "dies", "slow", "pour_2"])
def test_who_asked_for_nothing_gets_what_there_always_was(ear, task, options):
    """Old clients count messages and keys: accepted and one end, twelve keys in this order."""
    ref = ear.send(task, "sp1", options=options)
    bodies = ear.talk(ref)

    assert len(bodies) == 2
    for message in ear.heard:
        assert set(message.body) == FIELDS
        keys = [key for key, _ in json.loads(message.raw, object_pairs_hook=list)]
        assert len(keys) == len(FIELDS)
    assert bodies[1]["status"] == ("done" if task in ("both", "pour_2") else "error")


def test_the_keys_of_the_end_are_the_same_for_who_reads_along(ear):
    """Live output changes nothing in the last message."""
    assert set(ear.ask("both", "sp1", options=LIVE)[-1]) == FIELDS
    assert set(ear.ask("both", "sp1", options={"result": True})[-1]) == FIELDS | {"result"}
    assert set(ear.ask("both", "sp1", options={"result": True})[0]) == FIELDS


@pytest.mark.parametrize("live", [False, True], ids=["at the end", "live"])
def test_the_result_tells_how_it_ended(ear, live):
    """Exit code or signal, never both."""
    begun = time.time()
    options = {"result": True, "stream": live}
    ends = {task: ear.ask(task, "sp1", options=options)[-1]["result"]
            for task in ("both", "fails", "dies")}  # fmt: skip

    for result in ends.values():
        assert set(result) == RESULT_FIELDS
        assert begun - 0.1 <= result["started"] <= time.time()
        assert result["truncated"] is False
    codes = {task: (result["exit_code"], result["signal"]) for task, result in ends.items()}
    assert codes == {"both": (0, None), "fails": (7, None), "dies": (None, signal.SIGUSR1)}
    assert 12 * 0.03 < ends["both"]["duration"] < 3
    assert ends["fails"]["stderr"] == "first\nwhy not\n"
    assert ends["dies"]["stderr"] == "last words"
    assert ends["both"]["stderr"] == "".join(f"err {n}\n" for n in range(12))


@pytest.mark.parametrize("live", [False, True], ids=["at the end", "live"])
def test_of_a_long_stderr_the_last_64_kib_are_in_the_result(ear, live):
    """The end is where the trouble stands; `truncated` tells that there was more."""
    bodies = ear.ask("long_stderr", "sp1", options={"result": True, "stream": live})
    result = bodies[-1]["result"]
    everything = "a" * 1000 + "".join(f"line {n:07d}\n" for n in range(20000))

    assert bodies[-1]["status"] == "done"
    assert result["truncated"] is True
    assert result["stderr"] == everything[-65536:]
    if live:
        assert joined(bodies, "stderr") == everything


@pytest.mark.parametrize("live", [False, True], ids=["at the end", "live"])
def test_output_that_was_cut_is_told_as_truncated(ear, live):
    """Beyond max_output: an error, and not all of it in `data`."""
    bodies = ear.ask("too_much", "sp1", options={"result": True, "stream": live})

    assert bodies[-1]["status"] == "error"
    assert "max_output" in bodies[-1]["reason"]
    assert bodies[-1]["result"]["truncated"] is True


def test_the_result_of_a_time_limit_holds_what_was_said_on_stderr(ear):
    """Why it took so long is what one wants to know then, read along or not."""
    result = ear.ask("slow", "sp1", options={"result": True})[-1]["result"]

    assert result["stderr"] == "trouble\n"
    assert result["duration"] == pytest.approx(1, abs=0.5)


def test_the_result_comes_with_the_last_part_alone(world):
    """A result of several parts is over with the last of them."""
    tasks = live_tasks(world)
    world.daemon(tasks=tasks, agent={"limits": {"chunk_size": 65536}})
    bodies = world.listen().ask("pour_2", "sp1", options={"result": True})

    parts = bodies[1:]
    assert len(parts) > 30
    assert ["result" in part for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len("".join(part["data"] for part in parts)) == 2 * MIB


BAD = ["yes", "", 1, 0, [], {}, ["stream"], 1.5]


@pytest.mark.parametrize("option", ["stream", "result"])
@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_what_is_neither_true_nor_false_is_refused(ear, option, bad):
    """Rejected by name; with a wildcard accepted and then an error, never a rejected."""
    named = ear.ask("hello", "sp1", options={option: bad})
    any_node = ear.ask("hello", "*", options={option: bad})

    assert [body["status"] for body in named] == ["rejected"]
    assert [body["status"] for body in any_node] == ["accepted", "error"]
    for body in (*named, *any_node[1:]):
        assert f"options.{option}" in body["reason"]
        assert set(body) == FIELDS
