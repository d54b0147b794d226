"""Secrets: files of variables, and what a task's ``mask`` names never leaves the node."""

import json
import os
import sys
import time

import pytest

from .harness import World, command
from .processes import until

pytestmark = pytest.mark.redis

PLAIN = "hunter2-correct-horse"
# Name → what stands in the environment, or in the request's data.
SECRETS = {
    "plain": PLAIN,
    "quotes": """it's "quoted" \\ and $HOME `id` {data.pin}""",
    "lines": "first line of it\nsecond line of it\tand a tab",
    "unicode": "pässwörd-€-𝄞-✓",
    "repeats": "abababab-abababab-abab",
    "long": "0123456789" * 300,
}
LIVE = {"stream": True}
BOTH = {"stream": True, "result": True}

# Each shows what stands in $TOKEN, some way or other.
SNIPPETS = {
    "echo": "show(1, b'is ' + token + b' that\\n'); show(2, b'no ' + token + b'\\n')",
    "bytewise": """
for n in range(len(token[:400])):
    show(1, token[n:n + 1]); show(2, token[n:n + 1])
    if n % 4 == 0: time.sleep(0.006)
show(1, token[400:]); show(2, token[400:])
""",
    "halves": """
show(1, b'x' + token[:len(token) // 2]); show(2, b'x' + token[:-1])
time.sleep(0.2)
show(1, token[len(token) // 2:] + b'x'); show(2, token[-1:] + b'x')
""",
    "again": "show(1, token * 50); show(2, (token + token[:7]) * 50)",
    "fails": "show(2, b'trouble\\nbad password ' + token); sys.exit(3)",
    "fails_late": "show(2, b'y' * 490 + token + b'z' * 90); sys.exit(3)",
    "fails_long": "show(2, token * (99999 // len(token))); sys.exit(3)",
    "tail": "show(2, b'.' * 999 + token + b'.' * (65536 - len(token) // 2)); sys.exit(3)",
    "tail_line": """
show(2, b'.' * 999 + token + b'.' * (65530 - len(token) // 2) + b'\\n!'); sys.exit(3)
""",
    "borders": """
for n in (4095, 4096, 65535, 65536, 262143, 262144):
    show(1, b'.' * (n - len(token) // 2) + token)
""",
    "json": "show(1, json.dumps({'t': token.decode()}, ensure_ascii=False).encode())",
    "repr": "show(1, repr(token.decode()).encode()); show(2, repr([token.decode()]).encode())",
    "flood": "show(1, (b'.' * 999 + token) * 2000)",
    "killed": "show(2, token); show(1, token); os.kill(os.getpid(), 9)",
    "hangs": "show(1, token); show(2, token); time.sleep(30)",
}  # fmt: skip
HEAD = """
import json, os, sys, time
token = os.environb[b"TOKEN"] if b"TOKEN" in os.environb else sys.stdin.buffer.read()
def show(fd, data):
    while data:
        data = data[os.write(fd, data):]
"""  # fmt: skip
STDIN = """
token = json.loads(token)["login"]["password"].encode()
"""


def quoted(value):
    """A value as it stands in a file of variables."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def secret_tasks(world):
    tasks = {}
    for name, text in SNIPPETS.items():
        limit = {"timeout": 1} if name == "hangs" else {}
        options = {"max_output": 1_000_000} if name == "flood" else {}
        script = world.file(f"show_{name}.py", HEAD + text)
        for kind, value in SECRETS.items():
            file = world.file(f"{kind}.env", f"# ours\nTOKEN={quoted(value)}\n", 0o600)
            # A file of variables has no values of several lines.
            env = {"env": {"TOKEN": value}} if "\n" in value else {"env_files": [str(file)]}
            tasks[f"{name}_{kind}"] = command(
                sys.executable, "-S", script, broker_options={**env, **options},
                mask=["TOKEN"], **limit,
            )  # fmt: skip
        script = world.file(f"show_{name}_stdin.py", HEAD + STDIN + text)
        tasks[f"{name}_data"] = command(
            sys.executable, "-S", script, broker_options={"stdin": "data", **options},
            mask=["data.login.password"], **limit,
        )  # fmt: skip
    return tasks


@pytest.fixture(scope="module")
def node():
    with World() as world:
        world.daemon(tasks=secret_tasks(world), agent={"log": {"level": "debug"}})
        yield world


@pytest.fixture
def ear(node):
    with node.listener() as listener:
        yield listener


def shows(texts, secret):
    """Whether *secret* stands in one of *texts*, as it is or as JSON or Python write it."""
    forms = {secret, json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    return [text[:300] for text in texts for form in forms if form in text]


def texts_of(bodies):
    """All that a client could read in *bodies*: each text, and pieces put together."""
    live = [body for body in bodies if body["status"] == "progress"]
    found = []
    for stream in ("stdout", "stderr"):
        found.append("".join(b["data"] for b in live if b["stream"] == stream))
    found.append("".join(b["data"] for b in bodies[1:] if b["status"] != "progress"))
    found += [b["reason"] for b in bodies]
    found += [b["result"]["stderr"] for b in bodies if "result" in b]
    found += [json.dumps(b, ensure_ascii=False) for b in bodies]
    return found


def check(node, listener, refs, secrets):
    """Nothing of *secrets* in what answers *refs*, in the log, or in agent.jobs."""
    listener.talk_all(refs, seconds=30)
    jobs = listener.ask("agent.jobs", "sp1")[-1]["data"]
    heard = [text for ref in refs for text in texts_of(listener.of(ref))]
    heard += [json.dumps(job, ensure_ascii=False) for job in jobs if job["uuid"] in refs]
    assert len(jobs) >= len(refs)
    for secret in secrets:
        assert shows(heard, secret) == []
        assert shows([node.daemons[0].log], secret) == []
    return heard


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_secret_in_the_environment_never_gets_out(node, ear, name):
    """However it is written: no output, reason, result, log line or list of jobs shows it."""
    asked = {}
    for options in ({}, LIVE, {"result": True}, BOTH):
        for kind in SECRETS:
            # The flood is more than can be read along in the time.
            limit = {"timeout": 1.5} if name == "flood" else {}
            ref = ear.send(f"{name}_{kind}", "sp1", options={**options, **limit})
            asked[ref] = (options, kind)
    heard = check(node, ear, list(asked), SECRETS.values())

    assert any("***" in text for text in heard)
    for ref, (options, kind) in asked.items():
        last = ear.of(ref)[-1]
        assert last["status"] in ("done", "error")
        assert ("result" in last) == ("result" in options)
        if name == "echo":
            assert last["data"] == "is *** that\n", kind
        if name == "fails":
            assert last["reason"] == "exit code 3: bad password ***", kind
        if name == "halves":
            assert last["data"] == "x***x", kind


@pytest.mark.parametrize("as_text", [False, True], ids=["object", "text"])
@pytest.mark.parametrize("options", [{}, BOTH], ids=["at the end", "live"])
def test_a_secret_in_the_data_never_gets_out(node, ear, options, as_text):
    """``data.login.password``, given as an object or as text that holds one."""
    refs, secrets = [], []
    for number, name in enumerate(SNIPPETS):
        secret = list(SECRETS.values())[number % len(SECRETS)]
        data = {"login": {"password": secret}}
        data = json.dumps(data) if as_text else data
        wishes = {**options, "timeout": 2}
        refs.append(ear.send(f"{name}_data", "sp1", data=data, options=wishes))
        secrets.append(secret)
    heard = check(node, ear, refs, set(secrets))

    assert any("***" in text for text in heard)


def test_what_is_no_secret_is_left_as_it_is(world):
    """A mask that hides nothing, or is not there in the request, changes no byte."""
    raw = bytes(range(256)) * 400
    shown = world.file("raw", raw)
    world.daemon(tasks={
        "raw": command("/bin/cat", shown, mask=["TOKEN", "data.pin", "data.none"],
                       broker_options={"env": {"TOKEN": "not in there at all"}}),
        "empty": command("/bin/cat", shown, mask=["TOKEN"], broker_options={"env": {"TOKEN": ""}}),
    })  # fmt: skip
    listener = world.listen()
    text = raw.decode("utf-8", "replace")

    for task in ("raw", "empty"):
        for options in ({}, LIVE):
            assert listener.ask(task, "sp1", options=options, data={"pin": ""})[-1]["data"] == text


def test_offsets_of_masked_pieces_have_no_gaps(ear):
    """They count the bytes that are shown."""
    bodies = ear.ask("bytewise_plain", "sp1", options=LIVE)
    at = {"stdout": 0, "stderr": 0}
    for body in bodies[1:-1]:
        assert body["offset"] == at[body["stream"]]
        at[body["stream"]] += len(body["data"].encode())

    assert at == {"stdout": 3, "stderr": 3}


def test_masks_of_numbers_lists_and_objects(world):
    """What is named hides all that is in it, but neither true, false nor nothing."""
    show = "import sys; print(sys.stdin.read())"
    world.daemon(tasks={
        "show": command(sys.executable, "-c", show, mask=["data.secret"],
                        broker_options={"stdin": "data"}),
    })  # fmt: skip
    items = ["alpha-1", {"deep": "beta-2"}]
    data = {"secret": {"pin": 471147, "list": items, "on": True, "no": None}, "open": "gamma-3"}
    answer = world.listen().ask("show", "sp1", data=data)[-1]["data"]

    assert json.loads(answer.replace(":***", ': "***"')) == {
        "secret": {"pin": "***", "list": ["***", {"deep": "***"}], "on": True, "no": None},
        "open": "gamma-3",
    }


# Where the password in the request is not quite what the program prints.
LINE_END = PLAIN + "\n"


def test_a_line_end_after_a_secret_hides_it_no_less(world):
    """`echo password | …` adds one; programs that read a line print it without."""
    show = "import json, sys; print('for', json.load(sys.stdin)['pw'].strip(), 'ok')"
    world.daemon(tasks={
        "show": command(sys.executable, "-c", show, mask=["data.pw"],
                        broker_options={"stdin": "data"}),
        "words": command("/bin/echo", mask=["data.extra_args"]),
    })  # fmt: skip
    listener = world.listen()

    assert PLAIN not in listener.ask("show", "sp1", data={"pw": LINE_END})[-1]["data"]
    assert PLAIN not in listener.ask("words", "sp1", data={"extra_args": LINE_END})[-1]["data"]


def test_a_secret_as_json_of_ascii_characters(world):
    """What Python, PHP and jq -a write by default: \\u00e9 for é."""
    show = "import json, os; print(json.dumps({'t': os.environ['TOKEN']}))"
    world.daemon(tasks={
        "show": command(sys.executable, "-c", show, mask=["TOKEN"],
                        broker_options={"env": {"TOKEN": SECRETS["unicode"]}}),
    })  # fmt: skip
    data = world.listen().ask("show", "sp1")[-1]["data"]

    assert json.loads(data) != {"t": SECRETS["unicode"]}


def test_a_mask_of_nothing_that_could_be_is_a_mistake_in_the_file(world):
    """A name that is misspelt must not leave a secret open unnoticed."""
    daemon = world.daemon(tasks={"bad": command("/bin/true", mask=["data."])})

    assert "mask" in daemon.log
    assert world.listen().ask("bad", "sp1")[-1]["status"] == "rejected"


# Name → what the client wants hidden; the program prints 1.5 MB of `a`, and text.
HOSTILE = {
    "a letter a thousand times": "a" * 1024,
    "twenty": ["a" * number for number in range(1, 21)],
    "a line end": "\n",
    "a letter": "a",
}
TOO_MUCH = {
    "a letter sixty thousand times": "a" * 60_000,
    "700 kB": "ab" * 350_000,
    "thirty thousand": [f"secret-{n:07d}" for n in range(30_000)],
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_a_request_with_more_secrets_than_can_be_hidden_is_refused(world, kind):
    """Before it is accepted; it would hold up the node, or get out."""
    daemon = world.daemon(tasks={"show": command("/bin/true", mask=["data.secret"])})
    listener = world.listen()

    (refused,) = listener.ask("show", "sp1", data={"secret": TOO_MUCH[kind]})
    accepted, error = listener.ask("show", "*", data={"secret": TOO_MUCH[kind]})

    assert (refused["status"], accepted["status"], error["status"]) == (
        "rejected", "accepted", "error",
    )  # fmt: skip
    assert "to be masked" in refused["reason"]
    assert error["reason"] == f"{refused['reason']}, before it was started"
    assert "aaaa" not in daemon.log


@pytest.mark.parametrize("kind", HOSTILE)
def test_masks_of_a_hostile_request_hold_nobody_up(world, kind):
    """The client chooses what is to be hidden, and how much of it."""
    lines = world.file("lines", "a" * 1_500_000 + "\nsome text\n" * 10_000)
    daemon = world.daemon(tasks={"show": command("/bin/cat", lines, mask=["data.secret"])})
    listener = world.listen()
    slowest = []
    try:
        ref = listener.send("show", "sp1", data={"secret": HOSTILE[kind]})
        while not listener.ended(ref):
            begun = time.monotonic()
            listener.ask("agent.ping", "sp1", seconds=2)
            slowest.append(time.monotonic() - begun)
    except AssertionError:
        daemon.process.kill()  # it would not hear of SIGTERM either
        raise

    print(f"slowest ping {max(slowest):.3f} s, shown after "
          f"{listener.at(ref, 'done') - listener.sent[ref]:.3f} s")  # fmt: skip
    assert max(slowest) < 0.3


@pytest.mark.parametrize(
    "depth",
    [100, 900, 1000],
)
def test_deeply_nested_data_is_answered_like_any_other(world, depth):
    """Accepted and one end, whatever the client names a secret."""
    world.daemon(tasks={"noop": command("/bin/true", mask=["data.secret"])})
    listener = world.listen()
    body = listener.make("noop", "sp1", data="DATA")
    nested = '{"secret":' + "[" * depth + '"x"' + "]" * depth + "}"
    listener.redis.publish(listener.control, json.dumps(body).replace('"DATA"', nested))
    listener.fence()
    if not listener.of(body["uuid"]):
        pytest.skip("refused unread")
    listener.talk(body["uuid"], seconds=3)

    assert listener.statuses(body["uuid"]) == ["accepted", "done"]


def file_task(path, **options):
    return command("/usr/bin/env", broker_options={"env_files": [str(path)], **options})


def check_mistake(world, path, *words):
    """The task of *path* is accepted, then an error with *words*, that quotes nothing."""
    daemon = world.daemon(tasks={"show": file_task(path)})
    listener = world.listen()
    accepted, error = listener.ask("show", "sp1")

    assert (accepted["status"], error["status"], error["data"]) == ("accepted", "error", "")
    assert all(word in error["reason"] for word in (str(path), *words)), error["reason"]
    assert PLAIN not in error["reason"] + daemon.log
    assert PLAIN[:6] not in error["reason"] + daemon.log


BAD_LINES = {
    "no equals sign": PLAIN,
    "no name": f"={PLAIN}",
    "a blank in the name": f"MY TOKEN={PLAIN}",
    "a digit first": f"1TOKEN={PLAIN}",
    "a quote without end": f"TOKEN='{PLAIN}",
    "two quoted words": f"TOKEN='{PLAIN}' 'x'",
    "a shell's export": f"export TOKEN={PLAIN}",
    "a NUL character": f"TOKEN={PLAIN}\0x",
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_told_by_its_number_alone(world, kind):
    """The line itself may be the secret."""
    check_mistake(world, world.file("bad.env", f"A=1\n\n{BAD_LINES[kind]}\n", 0o600), "line 3")


def test_a_file_that_is_no_utf_8(world):
    """The text of a decoding error would quote bytes of it."""
    check_mistake(
        world, world.file("bad.env", f"A={PLAIN}\n\xff".encode("latin-1"), 0o600), "UTF-8"
    )


def test_a_file_that_everybody_may_write(world):
    """Whoever can write it chooses LD_PRELOAD; the error tells what to do."""
    path = world.file("open.env", f"TOKEN={PLAIN}\n", 0o666)
    check_mistake(world, path, "chmod")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_a_file_that_is_somebody_elses(world):
    """Neither root's nor the daemon's."""
    path = world.file("theirs.env", f"TOKEN={PLAIN}\n", 0o600)
    os.chown(path, 65534, 65534)
    check_mistake(world, path, "chown")


def test_a_directory(world):
    """No file at all."""
    path = world.place / "files" / "dir.env"
    path.mkdir(parents=True)
    check_mistake(world, path)


def test_a_fifo_holds_nobody_up(world):
    """It is opened before it is looked at: then the whole daemon waits for a writer."""
    path = world.place / "files" / "pipe.env"
    path.parent.mkdir(parents=True)
    os.mkfifo(path, 0o600)
    daemon = world.daemon(tasks={"show": file_task(path)})
    listener = world.listen()
    ref = listener.send("show", "sp1")
    try:
        listener.talk(ref, seconds=3)
        listener.ask("agent.ping", "sp1", seconds=3)
    except AssertionError:
        daemon.process.kill()
        raise


def test_a_file_that_goes_away_and_comes_back(world):
    """It is read at each start: gone is an error, and a changed secret is taken at once."""
    path = world.file("moving.env", "TOKEN=one\n", 0o600)
    world.daemon(tasks={"show": file_task(path)})
    listener = world.listen()
    assert "TOKEN=one\n" in listener.ask("show", "sp1")[-1]["data"]

    path.unlink()
    gone = listener.ask("show", "sp1")[-1]
    world.file("moving.env", "TOKEN=two\n", 0o600)

    assert gone["status"] == "error"
    assert str(path) in gone["reason"]
    assert "TOKEN=two\n" in listener.ask("show", "sp1")[-1]["data"]


def test_a_file_that_is_missing_from_the_start_is_a_mistake_of_the_task(world):
    """Named in the log; with `-` before it, it need not be there."""
    missing = world.place / "none.env"
    daemon = world.daemon(tasks={"show": file_task(missing), "may": file_task(f"-{missing}")})

    assert str(missing) in daemon.log
    assert "env_files" in daemon.log
    assert world.listen().ask("may", "sp1")[-1]["status"] == "done"


def test_what_a_file_of_variables_may_hold(world):
    """As systemd.exec(5) has it: comments, quotes, blanks; the last one wins."""
    text = (
        "# c\n; c\nA=1\nB = two words \nC='a  b'\nD=\"x'y\"\nE=\n"
        f"G={SECRETS['unicode']}\nA=last\nT={quoted(SECRETS['quotes'])}\n"
    )
    first = world.file("first.env", text, 0o600)
    second = world.file("second.env", "F=second\nB=over\n", 0o640)
    world.daemon(tasks={"show": command("/usr/bin/env", broker_options={
        "env": {"F": "fixed", "H": "fixed"}, "env_files": [str(first), str(second)]})})  # fmt: skip
    lines = world.listen().ask("show", "sp1")[-1]["data"].splitlines()

    for line in ("A=last", "B=over", "C=a  b", "D=x'y", "E=", "F=second", "H=fixed",
                 f"G={SECRETS['unicode']}", f"T={SECRETS['quotes']}"):  # fmt: skip
        assert line in lines


def test_credentials_of_the_service_manager(world):
    """``$CREDENTIALS_DIRECTORY`` is the daemon's; programs get the variables, not the place."""
    place = world.file("credentials/token.env", f"TOKEN={PLAIN}\n", 0o400).parent
    path = "$CREDENTIALS_DIRECTORY/token.env"
    show = world.script("show", 'echo "got $TOKEN"', "env")
    tasks = {"show": command(show, mask=["TOKEN"], broker_options={"env_files": [path]})}
    with_it = world.daemon("sp1", tasks=tasks, env={"CREDENTIALS_DIRECTORY": str(place)})
    without = world.daemon("sp2", tasks=tasks)
    listener = world.listen()
    done = listener.ask("show", "sp1")[-1]
    failed = listener.ask("show", "sp2")[-1]

    assert done["data"].startswith("got ***\n")
    assert "CREDENTIALS_DIRECTORY" not in done["data"]
    assert PLAIN not in done["data"] + with_it.log
    assert failed["status"] == "error"
    assert "CREDENTIALS_DIRECTORY" in failed["reason"]
    until(lambda: without.alive, 1, "the other daemon")
