"""What every fact source must do; add yours to `KINDS` and it is held to it."""

import asyncio
import os

import pytest

from ngcp_task_agent import processes, registry
from ngcp_task_agent.interfaces import Reading
from ngcp_task_agent.nodes.ngcp import NgcpSource, is_ngcp
from ngcp_task_agent.options import Options

from ..helpers import alive, until

pytestmark = pytest.mark.usefixtures("subreaper")

KNOWN = {"role": frozenset({"lb", "proxy"}), "site": frozenset({"vienna"})}
LINES = "role=lb+proxy\nsite=vienna\n"
NETWORK = """
hosts:
  prx01a: {role: [proxy, lb], status: online}
  self: {role: [db], status: offline}
"""


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


class Kind:
    """One kind of fact source.

    Attributes:
        name: In the registry.
    """

    name = ""

    def __init__(self, place):
        self.place = place

    def good(self):
        """Options under which `KNOWN` is read."""
        raise NotImplementedError

    def bad(self):
        """Options under which nothing can be said, where that can happen."""
        raise NotImplementedError

    def slow(self):
        """Options under which a reading does not end, where that can happen."""
        raise NotImplementedError


class Static(Kind):
    name = "static"

    def good(self):
        return {"facts": {"role": ["lb", "proxy"], "site": "vienna"}}


class File(Kind):
    name = "file"

    def good(self):
        path = self.place / "facts"
        path.write_text(LINES)
        return {"path": str(path)}

    def bad(self):
        return {"path": str(self.place / "gone")}


class Command(Kind):
    name = "command"

    def good(self):
        return {"run": "printf", "args": [LINES.replace("\n", "\\n")]}

    def bad(self):
        return {"run": "false"}

    def slow(self):
        return {"run": "sh", "args": "-c 'sleep 600 & sleep 600'"}


class Ngcp(Kind):
    name = "ngcp"

    def good(self):
        file = self.place / "etc/default/ngcp-roles"
        file.parent.mkdir(parents=True)
        file.write_text("NGCP_IS_LB=yes\nNGCP_IS_PROXY='yes'\nNGCP_IS_DB=no\n")
        network = self.place / "etc/ngcp-config/network.yml"
        network.parent.mkdir()
        network.write_text("hosts: {self: {status: vienna}}\n")
        return {"root": str(self.place)}

    def slow(self):
        script(self.place / "usr/sbin/ngcp-check-active", "sleep 600 & sleep 600")
        return {"root": str(self.place)}


KINDS = [Static, File, Command, Ngcp]


def checked(name, fields):
    options = Options({"type": name, **fields}, "agent.yml", "fact_sources.0.")
    options.mark("type")
    source = registry.find("fact_sources", name)(options)
    options.close()
    assert options.problems == []
    return source


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request, tmp_path):
    return request.param(tmp_path)


def test_each_of_our_own_is_held_to_this():
    """A source in the table of the registry has a kind here."""
    assert set(registry.BUILTIN["fact_sources"]) <= {kind.name for kind in KINDS}


async def test_a_reading_is_facts_by_key(kind):
    """Sets of texts, again and again the same."""
    source = checked(kind.name, kind.good())
    expected = dict(KNOWN)
    if kind.name == "ngcp":
        expected = {"role": KNOWN["role"], "status": KNOWN["site"]}

    readings = [await source.read() for _ in range(2)]

    assert readings[0] == readings[1]
    assert isinstance(readings[0], Reading)
    assert readings[0].facts == expected
    assert all(isinstance(values, frozenset) for values in readings[0].facts.values())
    await until(lambda: not processes._running)


async def test_it_says_how_often_and_how_long(kind):
    """Seconds between two readings, and until one is stale; the second is the longer."""
    source = checked(kind.name, kind.good())

    assert source.interval >= 0
    assert source.max_age > source.interval


async def test_its_name_fits_into_a_line_of_the_log(kind):
    """Not an object at an address."""
    assert str(checked(kind.name, kind.good())).startswith(kind.name)


@pytest.mark.parametrize("kind", [File, Command], indirect=True, ids=lambda k: k.name)
async def test_what_cannot_be_read_is_an_os_or_value_error(kind):
    """The facts go stale, the log says why, and it is tried again."""
    source = checked(kind.name, kind.bad())

    for _ in range(2):
        with pytest.raises((OSError, ValueError), match=r"\S"):
            await source.read()
    await until(lambda: not processes._running)


@pytest.mark.parametrize("kind", [Command, Ngcp], indirect=True, ids=lambda k: k.name)
async def test_a_program_that_hangs_is_ended(kind):
    """It may have children, and the next reading starts another."""
    source = checked(kind.name, {**kind.slow(), "timeout": 0.1})

    reading = (await asyncio.gather(source.read(), return_exceptions=True))[0]

    assert isinstance(reading, TimeoutError) or reading == Reading({}, "")
    await until(lambda: not alive())


@pytest.mark.parametrize("kind", [Command, Ngcp], indirect=True, ids=lambda k: k.name)
async def test_a_cancelled_reading_leaves_nothing_behind(kind):
    """The daemon stops, or its files were read again."""
    source = checked(kind.name, kind.slow())
    reading = asyncio.ensure_future(source.read())
    await until(lambda: len(alive()) >= 2)

    reading.cancel()

    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: not alive())


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("static", {"facts": ["a"]}, "facts: found a list; expected a mapping"),
        ("static", {"facts": {"role": [["a"]]}}, "facts.role.0: found a list; expected a text"),
        ("file", {}, "path: found nothing; expected the path of the file"),
        ("file", {"path": "/x", "interval": 0}, "interval: found 0; expected a number of seconds"),
        ("command", {}, "run: found nothing; expected the program to run"),
        ("command", {"run": "x", "args": {}}, "args: found a mapping; expected a list of words"),
        ("command", {"run": "x", "timeout": "y"}, "timeout: found 'y'; expected a number"),
        ("ngcp", {"max_age": "y"}, "max_age: found 'y'; expected a number of seconds"),
        ("ngcp", {"intervall": 1}, "intervall: found an unknown key; expected 'interval'"),
    ],
)
def test_a_mistake_is_told_when_the_file_is_loaded(name, fields, problem):
    """Never at night, by a fact that is not there."""
    options = Options(fields, "agent.yml", "fact_sources.0.")

    registry.find("fact_sources", name)(options)
    options.close()

    assert str(options.problems[0]).startswith(f"agent.yml: fact_sources.0.{problem}")


@pytest.mark.parametrize("key", [1, True])
async def test_a_fact_whose_name_yaml_takes_for_a_value_is_a_text(key):
    """`ON: x` names a fact, and a `dst` can only ask for texts."""
    reading = await checked("static", {"facts": {key: "x"}}).read()

    assert [type(name) for name in reading.facts] in ([str], [])


# An NGCP installation


@pytest.fixture
def installation(tmp_path):
    """Puts files below a root, and reads them with one and the same source."""

    class Installation:
        def __init__(self):
            self.source = NgcpSource(Options({"root": str(tmp_path)}, "agent.yml"))

        def write(self, file, text):
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(".fresh")
            fresh.write_text(text)
            fresh.rename(path)

        def program(self, name, text):
            script(tmp_path / "usr/sbin" / name, text)

        async def read(self):
            return await self.source.read()

    return Installation()


async def test_a_host_that_is_no_ngcp_has_no_facts(installation, tmp_path):
    """Every file may be missing."""
    assert await installation.read() == Reading({}, "")
    assert not is_ngcp(str(tmp_path))


@pytest.mark.parametrize(
    "file", ["etc/ngcp_hostname", "etc/default/ngcp-roles", "etc/ngcp-config/network.yml"]
)
def test_any_of_its_files_makes_an_ngcp(installation, tmp_path, file):
    """Then this source is asked without being named in agent.yml."""
    installation.write(file, "")

    assert is_ngcp(str(tmp_path))


async def test_the_name_is_in_a_file(installation):
    """Not in ngcp_nodename, which is only the index within a pair."""
    installation.write("etc/ngcp_hostname", "prx01a\n")
    installation.write("etc/ngcp_nodename", "a\n")
    installation.program("ngcp-hostname", "echo wrong")

    assert (await installation.read()).name == "prx01a"


@pytest.mark.parametrize(("text", "name"), [("echo prx01a", "prx01a"), ("echo x; exit 1", "")])
async def test_else_a_program_knows_the_name(installation, text, name):
    """If it succeeds."""
    installation.program("ngcp-hostname", text)

    assert (await installation.read()).name == name


async def test_roles_and_status_of_this_host(installation):
    """By its name in network.yml."""
    installation.write("etc/ngcp_hostname", "prx01a\n")
    installation.write("etc/ngcp-config/network.yml", NETWORK)

    assert (await installation.read()).facts == {
        "role": {"proxy", "lb"},
        "status": {"online"},
    }


async def test_a_single_node_calls_itself_self(installation):
    """Whatever its name is."""
    installation.write("etc/ngcp_hostname", "spce\n")
    installation.write("etc/ngcp-config/network.yml", NETWORK)

    assert (await installation.read()).facts == {"role": {"db"}, "status": {"offline"}}


async def test_ones_own_roles_are_in_a_cheaper_file(installation):
    """Shell assignments, maybe quoted; only "yes" is yes."""
    installation.write("etc/ngcp_hostname", "prx01a\n")
    installation.write("etc/ngcp-config/network.yml", NETWORK)
    installation.write(
        "etc/default/ngcp-roles",
        'NGCP_TYPE="carrier"\nNGCP_IS_PROXY="yes"\nNGCP_IS_LB=\'no\'\nNGCP_IS_RTP=yes\n',
    )

    assert (await installation.read()).facts == {
        "role": {"proxy", "rtp"},
        "status": {"online"},
        "type": {"carrier"},
    }


@pytest.mark.parametrize(
    ("text", "state"), [("exit 0", "active"), ("exit 1", "standby"), (None, None)]
)
async def test_the_state_is_what_the_program_says(installation, text, state):
    """Quietly, and without the program it is unknown."""
    if text is not None:
        installation.program("ngcp-check-active", f'test "$*" = -q || exit 9; {text}')

    facts = (await installation.read()).facts

    assert facts.get("state") == (None if state is None else {state})


async def test_a_failover_is_seen_with_the_next_reading(installation):
    """And a file that was changed is read again."""
    installation.write("etc/ngcp-config/network.yml", "hosts: {self: {status: offline}}")
    installation.program("ngcp-check-active", "exit 1")
    assert (await installation.read()).facts == {"state": {"standby"}, "status": {"offline"}}

    installation.program("ngcp-check-active", "exit 0")
    installation.write("etc/ngcp-config/network.yml", "hosts: {self: {status: online}}")

    assert (await installation.read()).facts == {"state": {"active"}, "status": {"online"}}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "hosts:", "hosts: []", "hosts: {self: }", "hosts: {self: [a]}",
     "hosts: {self: {role: 1, status: [[]]}}", "hosts: {other: {status: online}}"],
)  # fmt: skip
async def test_a_network_file_of_another_shape_says_nothing(installation, text):
    """It is somebody else's file, and closed is safe."""
    installation.write("etc/ngcp-config/network.yml", text)

    assert (await installation.read()).facts == {}


BROKEN = {
    "role": ("etc/default/ngcp-roles", "NGCP_TYPE='carrier"),
    "status": ("etc/ngcp-config/network.yml", "hosts: [\n"),
    "status by a tag": ("etc/ngcp-config/network.yml", "hosts: !!map [x]\n"),
}


@pytest.mark.parametrize("part", BROKEN)
async def test_a_part_that_cannot_be_read_leaves_the_others_alone(installation, part, caplog):
    """The log names the file, once; the state goes on deciding who is active."""
    file, text = BROKEN[part]
    installation.write("etc/ngcp_hostname", "prx01a\n")
    installation.write("etc/default/ngcp-roles", "NGCP_IS_LB=yes\n")
    installation.write("etc/ngcp-config/network.yml", "hosts: {prx01a: {status: online}}\n")
    installation.program("ngcp-check-active", "exit 0")
    before = (await installation.read()).facts

    installation.write(file, text)
    for _ in range(3):
        reading = await installation.read()

    assert reading.name == "prx01a"
    gone = part.partition(" ")[0]
    assert reading.facts == {key: before[key] for key in before if key != gone}
    assert caplog.text.count(os.path.basename(file)) == 1


async def test_a_part_that_can_be_read_again_is_told(installation, caplog):
    """Whoever has put it right sees that it is."""
    installation.write("etc/ngcp-config/network.yml", "hosts: [\n")
    await installation.read()

    installation.write("etc/ngcp-config/network.yml", "hosts: {self: {status: online}}\n")
    reading = await installation.read()

    assert reading.facts == {"status": {"online"}}
    assert "all readable again" in caplog.text


async def test_a_name_that_cannot_be_read_is_asked_for_again(installation):
    """Until it is known; then it stays, as names do."""
    installation.program("ngcp-hostname", "exit 1")
    assert (await installation.read()).name == ""

    installation.write("etc/ngcp_hostname", "prx01a\n")
    assert (await installation.read()).name == "prx01a"
    installation.write("etc/ngcp_hostname", "other\n")
    assert (await installation.read()).name == "prx01a"


async def test_a_name_that_is_no_text_leaves_the_facts_alone(installation, tmp_path):
    """Bytes of another encoding in the file are one more part that cannot be read."""
    installation.write("etc/ngcp_hostname", "")
    tmp_path.joinpath("etc/ngcp_hostname").write_bytes(b"\xff\xfe")
    installation.write("etc/ngcp-config/network.yml", "hosts: {self: {status: online}}\n")

    reading = await installation.read()

    assert (reading.name, reading.facts) == ("", {"status": {"online"}})


async def test_a_file_that_does_not_change_is_parsed_once(installation, tmp_path, monkeypatch):
    """network.yml of a large fleet is large, and the state is looked at every two seconds."""
    installation.write("etc/ngcp-config/network.yml", NETWORK)
    first = await installation.read()

    monkeypatch.setattr("ngcp_task_agent.nodes.ngcp.yamlfile.load", pytest.fail)

    assert await installation.read() == first
