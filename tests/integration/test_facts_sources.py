"""Fact sources on real files and programs."""

import math

import pytest

from ngcp_task_agent.facts import Facts
from ngcp_task_agent.nodes.command import CommandSource
from ngcp_task_agent.nodes.file import FileSource
from ngcp_task_agent.nodes.ngcp import NgcpSource, is_ngcp
from ngcp_task_agent.processes import all_ended

from .alone import descendants, in_own_process
from .jobs import made
from .waiting import until

NETWORK = """
hosts:
  prx01a:
    role: [proxy, lb]
    status: online
  db01a:
    role: [db]
    status: offline
"""
SINGLE = """
hosts:
  self:
    role: [proxy, lb, mgmt, db]
    status: online
"""


class Root:
    """The files of an NGCP installation below a directory."""

    def __init__(self, path):
        self.path = path

    def write(self, name, text, mode=0o644):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(text)
        fresh.chmod(mode)
        fresh.rename(path)

    def script(self, name, *lines):
        self.write(name, "\n".join(("#!/bin/sh", *lines, "")), 0o755)

    def source(self, **options):
        return made(NgcpSource, {"root": str(self.path), "timeout": 0.5, **options})

    async def facts(self, **options):
        """Each fact with its values in order."""
        reading = await self.source(**options).read()
        return {key: sorted(values) for key, values in reading.facts.items()}


@pytest.fixture
def root(tmp_path):
    root = Root(tmp_path)
    root.write("etc/ngcp_hostname", "prx01a\n")
    return root


class TestNgcp:
    """What is true of a node of an NGCP installation."""

    @pytest.mark.parametrize("text", ["prx01a", "prx01a\n", "  prx01a \n\n"])
    async def test_the_name_is_in_its_file(self, root, text):
        """With whatever blanks."""
        root.write("etc/ngcp_hostname", text)

        assert (await root.source().read()).name == "prx01a"

    async def test_the_name_is_not_the_index_within_the_pair(self, root):
        """/etc/ngcp_nodename holds that, and misleads by its name."""
        root.write("etc/ngcp_nodename", "b\n")

        assert (await root.source().read()).name == "prx01a"

    @pytest.mark.parametrize("left", ["", None])
    async def test_without_a_name_file_a_program_says_it(self, root, left):
        """Missing or empty."""
        root.path.joinpath("etc/ngcp_hostname").unlink()
        if left is not None:
            root.write("etc/ngcp_hostname", left)
        root.script("usr/sbin/ngcp-hostname", "echo sp2")

        assert (await root.source().read()).name == "sp2"

    async def test_without_both_the_name_is_unknown(self, root):
        """The agent then takes the host's."""
        root.path.joinpath("etc/ngcp_hostname").unlink()

        assert (await root.source().read()).name == ""

    async def test_a_program_that_fails_says_no_name(self, root):
        """An error text is none."""
        root.path.joinpath("etc/ngcp_hostname").unlink()
        root.script("usr/sbin/ngcp-hostname", "echo unknown; exit 1")

        assert (await root.source().read()).name == ""

    async def test_roles_with_and_without_quotes(self, root):
        """A file for the shell."""
        root.write(
            "etc/default/ngcp-roles",
            "# written by ngcpcfg\n\n"
            "NGCP_TYPE='carrier'\n"
            'NGCP_IS_PROXY="yes"\n'
            "NGCP_IS_LB=yes # too\n"
            "NGCP_IS_DB=no\n"
            'NGCP_IS_RTP=""\n'
            "export NGCP_IS_MGMT='yes'\n",
        )

        assert await root.facts() == {"role": ["lb", "mgmt", "proxy"], "type": ["carrier"]}

    async def test_network_yml_knows_the_host_by_name(self, root):
        """Roles and status of this one only."""
        root.write("etc/ngcp-config/network.yml", NETWORK)

        assert await root.facts() == {"role": ["lb", "proxy"], "status": ["online"]}

    async def test_a_single_node_system_is_called_self(self, root):
        """Whatever its name is."""
        root.write("etc/ngcp_hostname", "spce")
        root.write("etc/ngcp-config/network.yml", SINGLE)

        assert await root.facts() == {
            "role": ["db", "lb", "mgmt", "proxy"],
            "status": ["online"],
        }

    async def test_a_host_that_is_not_there_has_no_facts(self, root):
        """It fails closed."""
        root.write("etc/ngcp_hostname", "web01a")
        root.write("etc/ngcp-config/network.yml", NETWORK)

        assert await root.facts() == {}

    async def test_the_cheaper_source_of_roles_wins(self, root):
        """It is written for this host alone."""
        root.write("etc/ngcp-config/network.yml", NETWORK)
        root.write("etc/default/ngcp-roles", "NGCP_IS_PROXY=yes\n")

        assert await root.facts() == {"role": ["proxy"], "status": ["online"]}

    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            (["exit 0"], {"state": ["active"]}),
            (["exit 1"], {"state": ["standby"]}),
            (['[ "$*" = -q ] || exit 1'], {"state": ["active"]}),
            (["echo active; exit 3"], {"state": ["standby"]}),
        ],
    )
    async def test_the_state_is_an_exit_code(self, root, lines, expected):
        """Of ngcp-check-active -q; what it prints does not count."""
        root.script("usr/sbin/ngcp-check-active", *lines)

        assert await root.facts() == expected

    async def test_without_the_program_there_is_no_state(self, root):
        """Unknown matches nothing, not even `state=standby`."""
        assert await root.facts() == {}

    async def test_a_file_without_executable_bit_is_no_state(self, root):
        """And leaves the other facts alone."""
        root.write("etc/ngcp-config/network.yml", NETWORK)
        root.write("usr/sbin/ngcp-check-active", "#!/bin/sh\n")

        assert await root.facts() == {"role": ["lb", "proxy"], "status": ["online"]}

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("etc/ngcp-config/network.yml", "hosts: ["),
            ("etc/ngcp-config/network.yml", "- no\n- mapping\n"),
            ("etc/ngcp-config/network.yml", "hosts: none\n"),
            ("etc/ngcp-config/network.yml", "hosts:\n  prx01a: none\n"),
            ("etc/ngcp-config/network.yml", "hosts:\n  prx01a: {role: {a: b}, status: [1]}\n"),
            ("etc/default/ngcp-roles", 'NGCP_IS_PROXY="yes\n'),
            ("etc/default/ngcp-roles", "if true; then\n"),
            ("etc/default/ngcp-roles", ""),
        ],
    )
    async def test_one_broken_file_leaves_the_others_alone(self, root, name, text):
        """What it would have said is unknown, the rest is not."""
        root.write("etc/ngcp-config/network.yml", NETWORK)
        root.write("etc/default/ngcp-roles", "NGCP_IS_PROXY=yes\nNGCP_TYPE=carrier\n")
        root.script("usr/sbin/ngcp-check-active", "exit 0")
        root.write(name, text)

        reading = await root.source().read()

        assert reading.name == "prx01a"
        assert reading.facts["state"] == {"active"}
        assert {"status", "type"} & set(reading.facts)

    @pytest.mark.parametrize(
        "name", ["etc/ngcp_hostname", "etc/default/ngcp-roles", "etc/ngcp-config/network.yml"]
    )
    async def test_bytes_that_are_no_utf_8_leave_the_others_alone(self, root, name):
        """A disk error, or somebody's editor."""
        root.script("usr/sbin/ngcp-check-active", "exit 0")
        root.write(name, "")
        root.path.joinpath(name).write_bytes(b"\xff\xfe\n")

        assert (await root.source().read()).facts["state"] == {"active"}

    async def test_changes_are_seen_at_the_next_reading(self, root):
        """Failover, an ngcpcfg apply, a script that was installed later."""
        source = root.source()
        assert (await source.read()).facts == {}

        root.write("etc/ngcp-config/network.yml", NETWORK)
        root.script("usr/sbin/ngcp-check-active", "exit 0")
        assert (await source.read()).facts["status"] == {"online"}

        root.write("etc/ngcp-config/network.yml", NETWORK.replace("online", "inactive"))
        root.script("usr/sbin/ngcp-check-active", "exit 1")
        reading = await source.read()
        assert reading.facts["status"] == {"inactive"}
        assert reading.facts["state"] == {"standby"}

    @pytest.mark.parametrize(
        "name", ["etc/ngcp_hostname", "etc/default/ngcp-roles", "etc/ngcp-config/network.yml"]
    )
    def test_any_of_its_files_tells_an_installation(self, tmp_path, name):
        """Else no such facts are looked for."""
        assert not is_ngcp(str(tmp_path))

        Root(tmp_path).write(name, "")

        assert is_ngcp(str(tmp_path))


@in_own_process
async def test_a_program_that_hangs_is_ended_and_is_no_state(tmp_path):
    """With its children; the other facts are still known."""
    root = Root(tmp_path)
    root.write("etc/default/ngcp-roles", "NGCP_IS_PROXY=yes\n")
    root.script("usr/sbin/ngcp-check-active", "sleep 60 & sleep 60")

    facts = await root.facts()
    await all_ended()

    assert facts == {"role": ["proxy"]}
    assert descendants() == []


@in_own_process
async def test_a_failover_is_noticed_and_a_hang_makes_the_state_unknown(tmp_path):
    """In the background, while requests are judged by what is known."""
    root = Root(tmp_path)
    root.write("etc/ngcp_hostname", "prx01a\n")
    root.script("usr/sbin/ngcp-check-active", "exit 0")
    source = root.source(interval=0.1, max_age=1.0, timeout=0.3)
    facts = Facts("", (), {}, (source,), "elsewhere")

    await facts.start()
    assert (facts.node().name, facts.node().facts["state"]) == ("prx01a", {"active"})
    root.script("usr/sbin/ngcp-check-active", "exit 1")
    await until(lambda: facts.node().facts["state"] == {"standby"}, 3)
    root.script("usr/sbin/ngcp-check-active", "sleep 60")
    await until(lambda: "state" not in facts.node().facts, 3)
    root.script("usr/sbin/ngcp-check-active", "exit 0")
    await until(lambda: facts.node().facts.get("state") == {"active"}, 3)
    await facts.stop()
    await all_ended()

    assert descendants() == []


class TestFile:
    """Facts that something else keeps up to date."""

    @pytest.mark.parametrize(
        "text",
        ['{"colour": "blue", "room": ["a", "b"]}', "colour=blue\n# no\n\nroom = a + b\n"],
    )
    async def test_json_or_lines(self, tmp_path, text):
        """Either says the same."""
        tmp_path.joinpath("facts").write_text(text.replace(" = ", "=").replace(" + ", "+"))
        source = made(FileSource, {"path": str(tmp_path / "facts")})

        reading = await source.read()

        assert reading.facts == {"colour": {"blue"}, "room": {"a", "b"}}

    async def test_it_is_read_again(self, tmp_path):
        """Each time."""
        path = tmp_path / "facts"
        source = made(FileSource, {"path": str(path)})
        with pytest.raises(OSError, match="No such file"):
            await source.read()

        path.write_text("colour=blue\n")
        assert (await source.read()).facts == {"colour": {"blue"}}
        path.write_text("colour=red\n")
        assert (await source.read()).facts == {"colour": {"red"}}

    @pytest.mark.parametrize("content", [b"no fact\n", b'{"a": 1}', b"[1]", b"{", b"\xff", b"a='b"])
    async def test_what_is_no_fact_says_nothing(self, tmp_path, content):
        """The facts go stale, and nothing fails."""
        tmp_path.joinpath("facts").write_bytes(content)

        with pytest.raises(ValueError, match=r"\w"):
            await made(FileSource, {"path": str(tmp_path / "facts")}).read()


@in_own_process
async def test_a_command_that_takes_too_long_is_ended():
    """With its children."""
    source = made(
        CommandSource, {"run": "/bin/sh", "args": ["-c", "sleep 60 & sleep 60"], "timeout": 0.2}
    )

    with pytest.raises(TimeoutError, match=r"longer than 0\.2 s"):
        await source.read()
    await all_ended()

    assert descendants() == []


class TestCommand:
    """Facts that a program prints."""

    def source(self, script, **options):
        return made(CommandSource, {"run": "/bin/sh", "args": ["-c", script], **options})

    @pytest.mark.parametrize(
        "script", ["""echo '{"colour": "blue"}'""", "echo colour=blue; echo warning >&2"]
    )
    async def test_json_or_lines(self, script):
        """stderr does not count."""
        assert (await self.source(script).read()).facts == {"colour": {"blue"}}

    async def test_a_clean_environment(self, monkeypatch):
        """The agent's own is nobody's business."""
        monkeypatch.setenv("AGENT_SECRET", "x")

        facts = (await self.source("echo secret=$AGENT_SECRET; echo cwd=$PWD").read()).facts

        assert facts == {"secret": frozenset(), "cwd": {"/"}}

    @pytest.mark.parametrize("script", ["echo a=b; exit 1", "echo no fact", "kill -9 $$"])
    async def test_a_failure_says_nothing(self, script):
        """Whatever was printed before."""
        with pytest.raises(ValueError, match=r"\w"):
            await self.source(script).read()

    async def test_a_missing_program_says_nothing(self):
        """It may be installed later."""
        with pytest.raises(OSError, match="nonexistent"):
            await made(CommandSource, {"run": "/nonexistent"}).read()

    def test_how_long_a_reading_holds(self):
        """Three intervals, so that one failure is no loss."""
        source = self.source("true", interval=4)

        assert (source.interval, source.max_age) == (4.0, 12.0)
        assert math.isfinite(source.max_age)
