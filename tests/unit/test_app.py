import asyncio

import pytest

from ngcp_task_agent import app, registry
from ngcp_task_agent.app import Loader, close_brokers, close_later
from ngcp_task_agent.errors import ConfigError, Problem

from ..helpers import Says, task

TASK = "backend: local\nbroker: command\nbroker_options: {run: /bin/true}\n"
BROKEN = "broker: [\n"
WRONG = "backend: local\nbroker: command\nbroker_options: {args: -h}\n"
SEED_REDIS = """
type: redis
options:
  host: localhost
  port: 6379
  db: 40
"""
SEED_TASK = """
name: ping_10_10_10_10
backend: redis
backend_options:
  control_channel: ngcp-task-agent-redis
broker: command
broker_options:
  run: ping
  as_user: nobody
  args: -c 1 10.10.10.10
"""


class Place:
    """A configuration directory, and the loader that reads it again and again."""

    def __init__(self, path):
        self.path = path
        self.loader = Loader(str(path))

    def write(self, file, text, mode=0o644):
        path = self.path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def remove(self, file):
        self.path.joinpath(file).unlink()

    def load(self):
        """The setup, and every problem as the text people see."""
        setup = self.loader.load()
        return setup, [str(problem) for problem in setup.problems]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_an_empty_directory_is_an_agent_of_its_own(place):
    """The local backend is always there: the administrator's way in."""
    setup, problems = place.load()

    assert (list(setup.backends), setup.tasks, problems) == (["local"], {}, [])
    assert "/run/ngcp-task-agent/agent.sock" in setup.backends["local"].state().text


def test_one_task_and_nothing_else_works(place):
    """Its backend has defaults."""
    place.write("tasks/ping.yml", "broker: command\nbroker_options: {run: /bin/true}\n")

    setup, problems = place.load()

    assert problems == []
    assert sorted(setup.backends) == ["local", "redis"]
    assert setup.tasks["ping"].control_channel == "ngcp-task-agent-redis"


def test_the_files_of_earlier_releases_load_unchanged(place):
    """`db: 40` on a server with 16 databases is no reason to fail; nothing is even warned of."""
    place.write("backends/redis.yml", SEED_REDIS)
    place.write("tasks/ping_10_10_10_10.yml", SEED_TASK)

    setup, problems = place.load()

    one = setup.tasks["ping_10_10_10_10"]
    assert (problems, setup.warnings) == ([], [])
    assert (one.backend, one.control_channel) == ("redis", "ngcp-task-agent-redis")
    assert (one.timeout, one.run_timeout) == (9.5, None)


@pytest.mark.parametrize(
    "text",
    ["host: localhost\nport: 6379\ndb: 40\n", "backend_options: {host: localhost, db: 40}\n"],
)
def test_connection_keys_may_stand_at_the_top_or_below(place, text):
    """Both have been written."""
    place.write("backends/redis.yml", text)

    setup, problems = place.load()

    assert (problems, setup.warnings) == ([], [])
    assert "localhost:6379" in str(setup.backends["redis"]._server)


def test_an_unknown_key_of_a_backend_is_a_warning_only(place):
    """Old files may hold what no longer means anything; a typing mistake is told all the same."""
    place.write("backends/redis.yml", "hots: db01\n")

    setup, problems = place.load()

    assert problems == []
    assert list(map(str, setup.warnings)) == [
        "backends/redis.yml: hots: found an unknown key; expected 'host'"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BROKEN, "found line 2, column 1: "),
        (WRONG, "broker_options.run: found nothing; expected the program to run"),
        (
            "backend: local\nbroker: comand\nbroker_options: {run: x}\n",
            "broker: found 'comand' (no broker called 'comand'; known are command, http, python); "
            "expected one of command, http, python, or an installed plug-in",
        ),
        (
            "backend: redsi\nbroker: command\nbroker_options: {run: x}\n",
            "backend: found 'redsi'; expected one of local, redis",
        ),
        (TASK.replace("run", "rnu"), "broker_options.run: found nothing; expected the program"),
        (TASK + "timeot: 3\n", "timeot: found an unknown key; expected 'timeout'"),
        (TASK.replace("true}", "true, arsg: x}"), "broker_options.arsg: found an unknown key; "
         "expected 'args'"),
        ("backend: local\n", "broker: found nothing; expected the broker's name"),
        (TASK.replace("/bin/true", "bin/true"), "broker_options.run: found 'bin/true'; expected "
         "an absolute path, or a name found in PATH"),
        (TASK.replace("/bin/true", "'/bin/{data.program}'"), "broker_options.run: found "
         "'/bin/{data.program}'; expected a program that no client chooses"),
        (TASK + "arguments: 7\n", "arguments: found 7; expected a JSON Schema"),
        (TASK.replace("true}", "true, cwd: x}"), "broker_options.cwd: found 'x'; expected an "
         "absolute path"),
        (TASK.replace("true}", "true, umask: '9'}"), "broker_options.umask: found '9'; expected "
         "octal digits"),
        (TASK.replace("true}", "true, stdin: file}"), "broker_options.stdin: found 'file'; "
         "expected one of none, data"),
        (TASK.replace("true}", "true, ok_exit_codes: [0, 256]}"), "broker_options.ok_exit_codes: "
         "found '256'; expected whole numbers from 0 to 255"),
        ("backend: local\nbroker: python\nbroker_options: {callable: nonesuch:f}\n",
         "broker_options.callable: found no module nonesuch; expected a module"),
        ("backend: local\nbroker: python\nbroker_options: {callable: nonesuch}\n",
         "broker_options.callable: found 'nonesuch'; expected package.module:function"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_task_is_told_and_harms_no_other(place, text, problem):
    """File, key, what was found, what would be right."""
    place.write("tasks/bad.yml", text)
    place.write("tasks/good.yml", TASK)

    setup, problems = place.load()

    assert problems[0].startswith(f"tasks/bad.yml: {problem}")
    assert list(setup.tasks) == ["good"]


TYPED = TASK + "arguments: {properties: {host: {type: string}}, required: [host]}\n"


def test_a_task_has_the_schema_of_its_file(place):
    """As it stands there: a client can draw a form from it."""
    place.write("tasks/ping.yml", TYPED)
    place.write("tasks/pong.yml", TASK)

    setup, problems = place.load()

    given = {"properties": {"host": {"type": "string"}}, "required": ["host"]}
    assert problems == []
    assert setup.tasks["ping"].arguments.given == given
    assert setup.tasks["ping"].arguments.fault({}).startswith("data.host: ")
    assert setup.tasks["pong"].arguments is None


def test_a_mistake_in_a_schema_keeps_the_last_good_version(place):
    """As any other mistake does."""
    place.write("tasks/ping.yml", TYPED)
    good = place.load()[0].tasks["ping"]

    place.write("tasks/ping.yml", TYPED.replace("string", "text"))
    setup, problems = place.load()

    assert setup.tasks["ping"] is good
    assert [problem.partition(": found")[0] for problem in problems] == [
        "tasks/ping.yml: arguments.properties.host.type"
    ]


def test_what_a_schema_does_not_check_is_warned_of(place):
    """By `check` and in the log."""
    place.write("tasks/ping.yml", TYPED.replace("required", "requried"))

    setup, problems = place.load()

    assert problems == []
    assert list(map(str, setup.warnings)) == [
        "tasks/ping.yml: arguments.requried: found an unknown keyword; expected 'required'"
    ]


@pytest.mark.parametrize("env", ["{1: x}", "{ON: x}", "{1: [x]}", "{YES: 1}"])
def test_a_variable_whose_name_yaml_takes_for_a_value_breaks_nothing(place, env):
    """`ON` is a name like any other to an administrator; at the worst this one file is wrong."""
    place.write("tasks/bad.yml", TASK.replace("true}", f"true, env: {env}}}"))
    place.write("tasks/good.yml", TASK)

    setup, problems = place.load()

    assert "good" in setup.tasks
    assert all(problem.startswith("tasks/bad.yml: broker_options.env") for problem in problems)


def test_every_mistake_of_every_file_is_told_at_once(place):
    """One run of `check` is enough."""
    place.write("tasks/a.yml", "broker: command\nbroker_options: {args: 'a', umask: 9}\nfoo: 1\n")
    place.write("tasks/b.yml", BROKEN)
    place.write("backends/redis.yml", "port: 70000\nhost: []\n")

    _, problems = place.load()

    assert sorted(problem.rpartition(": found")[0] for problem in problems) == [
        "backends/redis.yml: host",
        "backends/redis.yml: port",
        "tasks/a.yml: broker_options.run",
        "tasks/a.yml: broker_options.umask",
        "tasks/a.yml: foo",
        "tasks/b.yml",
    ]


def test_two_files_cannot_have_one_name(place):
    """The first in the order of the files has it."""
    place.write("tasks/a.yml", TASK + "name: ping\nmax_running: 4\n")
    place.write("tasks/b.yml", TASK + "name: ping\n")

    setup, problems = place.load()

    assert problems == ["tasks/b.yml: name: found 'ping' again; expected a name that no other "
                        "file has"]  # fmt: skip
    assert list(setup.tasks) == ["ping"]


def test_a_file_that_is_refused_changes_nothing(place):
    """Least of all the limits of the task whose name it took."""
    place.write("tasks/a.yml", TASK + "name: ping\nmax_running: 4\n")
    place.write("tasks/b.yml", TASK + "name: ping\nmax_running: 99\n")

    setup, _ = place.load()

    assert setup.tasks["ping"].gate.max_running == 4


# Read again


def test_what_has_not_changed_is_the_same_object(place):
    """Connections stay, jobs go on being counted, facts are not forgotten."""
    place.write("agent.yml", "name: sp1\n")
    place.write("backends/redis.yml", SEED_REDIS)
    place.write("tasks/ping.yml", SEED_TASK)

    first, _ = place.load()
    second, _ = place.load()

    assert second.facts is first.facts
    assert second.backends == first.backends
    assert second.tasks == first.tasks


def test_a_backend_without_a_file_stays_too(place):
    """A task that has not changed still needs the backend it was given."""
    place.write("tasks/ping.yml", "broker: command\nbroker_options: {run: /bin/true}\n")
    first, _ = place.load()

    place.write("tasks/pong.yml", TASK)
    second, _ = place.load()

    assert second.backends.get("redis") is first.backends["redis"]


def test_a_file_is_live_when_it_is_there_and_gone_when_it_is_gone(place):
    """Nothing is kept of what has been removed."""
    place.write("tasks/ping.yml", TASK)
    assert list(place.load()[0].tasks) == ["ping"]

    place.remove("tasks/ping.yml")
    assert list(place.load()[0].tasks) == []
    place.write("tasks/ping.yml", BROKEN)
    assert list(place.load()[0].tasks) == []


@pytest.mark.parametrize(("text", "mode"), [(BROKEN, 0o644), (WRONG, 0o644), (TASK, 0o666)])
def test_a_broken_file_keeps_its_last_good_version(place, text, mode):
    """Unreadable, wrong, or unsafe: told each time, and what worked goes on."""
    place.write("tasks/ping.yml", TASK + "description: good\n")
    good = place.load()[0].tasks["ping"]

    place.write("tasks/ping.yml", text, mode)
    for _ in range(2):
        setup, problems = place.load()
        assert setup.tasks["ping"] is good
        assert len(problems) == 1

    place.write("tasks/ping.yml", TASK + "description: better\n")
    setup, problems = place.load()
    assert (setup.tasks["ping"].description, problems) == ("better", [])


def test_a_broken_backend_keeps_its_last_good_version(place):
    """And the tasks on it stay."""
    place.write("backends/redis.yml", SEED_REDIS)
    place.write("tasks/ping.yml", SEED_TASK)
    before, _ = place.load()

    for text in (BROKEN, "port: none\n"):
        place.write("backends/redis.yml", text)
        setup, problems = place.load()

        assert setup.backends["redis"] is before.backends["redis"]
        assert setup.tasks == before.tasks
        assert len(problems) == 1


def test_a_broken_agent_yml_keeps_its_last_good_version(place):
    """At the start there is none, and the node's very name is in doubt."""
    place.write("agent.yml", "name: [\n")
    with pytest.raises(ConfigError, match=r"^agent\.yml: found line"):
        place.load()

    place.write("agent.yml", "name: sp1\n")
    place.load()
    for text in ("name: [\n", "nmae: sp1\n", "name: a b\n"):
        place.write("agent.yml", text)
        setup, problems = place.load()
        assert setup.facts.node().name == "sp1"
        assert len(problems) == 1


def test_every_mistake_in_agent_yml_is_told_at_the_start(place):
    """Fact sources included."""
    sources = "[nosuch, {type: file}, {type: file, path: /x, a: 1}]"
    place.write("agent.yml", f"nmae: x\ngrace: -1\nfact_sources: {sources}\n")

    with pytest.raises(ConfigError) as caught:
        place.load()

    assert [problem.key for problem in caught.value.problems] == [
        "grace", "nmae", "fact_sources.0.type", "fact_sources.1.path", "fact_sources.2.a",
    ]  # fmt: skip


def test_a_disabled_task_is_not_there(place):
    """Until it is enabled again."""
    place.write("tasks/ping.yml", TASK)
    assert "ping" in place.load()[0].tasks

    place.write("tasks/ping.yml", TASK + "enabled: no\n")
    assert place.load()[1:] == ([],)
    assert "ping" not in place.load()[0].tasks
    place.write("tasks/ping.yml", TASK)
    assert "ping" in place.load()[0].tasks


@pytest.mark.parametrize("folder", ["tasks", "backends"])
def test_what_was_disabled_is_not_revived_by_a_mistake(place, folder):
    """The last good version said: disabled."""
    text = TASK if folder == "tasks" else "type: redis\n"
    place.write(f"{folder}/ping.yml", text)
    place.load()
    place.write(f"{folder}/ping.yml", text + "enabled: no\n")
    place.load()

    place.write(f"{folder}/ping.yml", BROKEN)
    setup, _ = place.load()

    assert "ping" not in getattr(setup, folder)


@pytest.mark.parametrize("folder", ["tasks", "backends"])
def test_what_was_disabled_is_made_anew(place, folder):
    """Its broker or backend has been closed meanwhile, and is good for nothing."""
    text = TASK if folder == "tasks" else "type: redis\n"
    place.write(f"{folder}/ping.yml", text)
    before = getattr(place.load()[0], folder)["ping"]
    place.write(f"{folder}/ping.yml", text + "enabled: no\n")
    place.load()

    place.write(f"{folder}/ping.yml", text)
    after = getattr(place.load()[0], folder)["ping"]

    assert after is not before


def test_a_broken_local_backend_is_none(place):
    """Not one with defaults: its file may have said who is to be kept out."""
    place.write("backends/local.yml", BROKEN)

    assert place.load()[0].backends == {}


@pytest.mark.parametrize("mistake", [ConfigError([Problem("x.yml", "a", "b", "c")]), KeyError(1)])
def test_a_plug_in_that_fails_harms_no_other(place, monkeypatch, mistake):
    """Somebody else's code; its file is wrong, the others are not."""

    def factory(options):
        raise mistake

    find = registry.find
    monkeypatch.setattr(
        registry, "find", lambda kind, name: factory if name == "foreign" else find(kind, name)
    )
    place.write("tasks/bad.yml", "backend: local\nbroker: foreign\n")
    place.write("tasks/good.yml", TASK)

    setup, problems = place.load()

    assert list(setup.tasks) == ["good"]
    assert len(problems) == 1


def test_a_host_of_an_ngcp_installation_knows_its_facts(place, monkeypatch):
    """Without a word in agent.yml; with one, only what it says."""
    monkeypatch.setattr(app, "is_ngcp", lambda: True)

    assert [str(source) for source in place.load()[0].facts._sources] == ["ngcp"]
    place.write("agent.yml", "fact_sources: []\n")
    assert [str(source) for source in place.load()[0].facts._sources] == []


def test_a_local_backend_may_be_switched_off(place):
    """By its own file."""
    place.write("backends/local.yml", "enabled: no\n")

    assert place.load()[0].backends == {}


def test_a_changed_limit_counts_the_jobs_that_run(place):
    """The new version of a task has the old one's gate."""
    place.write("tasks/ping.yml", TASK + "max_running: 3\n")
    gate = place.load()[0].tasks["ping"].gate
    gate.join()

    place.write("tasks/ping.yml", TASK + "max_running: 1\n")
    changed = place.load()[0].tasks["ping"]
    after = changed.gate
    changed.adjust_gate()

    assert after is gate
    assert (after.running, after.max_running) == (1, 1)


def test_a_task_that_is_corrected_with_its_backend_comes_back(place):
    """It was refused because of another file, which has been put right."""
    place.write("backends/redis.yml", "port: none\n")
    place.write("tasks/ping.yml", SEED_TASK)
    assert place.load()[0].tasks == {}

    place.write("backends/redis.yml", SEED_REDIS)

    assert list(place.load()[0].tasks) == ["ping_10_10_10_10"]


def test_a_task_whose_backend_is_gone_is_told(place):
    """Else the daemon says nothing of a mistake that `check` reports."""
    place.write("backends/second.yml", "type: redis\n")
    place.write("tasks/ping.yml", TASK.replace("local", "second"))
    assert place.load()[1] == []

    place.remove("backends/second.yml")
    _, problems = place.load()

    assert [p.partition(": found")[0] for p in problems] == ["tasks/ping.yml: backend"]


async def test_files_are_read_in_a_thread_beside_the_loop(place):
    """Reading takes its time; whoever waits at a gate is let in by the loop, and by nobody else."""
    place.write("tasks/ping.yml", TASK + "max_running: 1\n")
    gate = place.load()[0].tasks["ping"].gate
    gate.join()
    waiting = asyncio.ensure_future(asyncio.wait_for(gate.join(), 5))
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    loop.set_debug(True)  # now a call from another thread is an error, and no riddle

    place.write("tasks/ping.yml", TASK + "max_running: 2\n")
    await asyncio.to_thread(place.loader.load)

    loop.set_debug(False)
    waiting.cancel()


async def test_only_brokers_nobody_needs_are_closed():
    """A task that has not changed keeps its workers."""

    class Closes(Says):
        closed = 0

        async def close(self):
            self.closed += 1

    kept, replaced, gone = (task(Closes(), name=name) for name in "krg")
    new = {"k": kept, "r": task(Closes(), name="r")}

    await close_brokers(close_later({"k": kept, "r": replaced, "g": gone}, new))

    assert [t.broker.closed for t in (kept, replaced, gone, new["r"])] == [0, 1, 1, 0]
