import os

import pytest

from ngcp_task_agent.config import (
    LARGEST,
    Limits,
    Settings,
    is_yaml,
    read_directory,
    read_settings,
    read_task,
)
from ngcp_task_agent.errors import ConfigError
from ngcp_task_agent.options import Options

TASK = "broker: command\nbroker_options: {run: /bin/true}\n"


@pytest.fixture
def directory(tmp_path):
    """An empty configuration directory."""
    for folder in ("backends", "tasks"):
        tmp_path.joinpath(folder).mkdir()
    return tmp_path


def write(directory, file, text, mode=0o644):
    path = directory / file
    path.write_text(text)
    path.chmod(mode)
    return path


def read(directory):
    """What is found below *directory*, and every problem as the text people see."""
    files = read_directory(str(directory))
    return files, [str(problem) for problem in files.problems]


def settings(**fields):
    options = Options(fields, "agent.yml", base="/etc/agent")
    return read_settings(options), [str(problem) for problem in options.problems]


def task(**fields):
    options = Options({"broker": "command", **fields}, "tasks/ping.yml")
    return read_task(options, "ping"), [str(problem) for problem in options.problems]


# The directory


def test_files_are_found_by_where_they_are(directory):
    """agent.yml, backends and tasks; what is hidden or no YAML is somebody else's."""
    write(directory, "agent.yml", "name: sp1\n")
    write(directory, "backends/redis.yml", "type: redis\n")
    for name in ("b.yml", "a.yaml", ".hidden.yml", "ping.yml.dpkg-new", "README", "old.yml~"):
        write(directory, f"tasks/{name}", TASK)

    files, problems = read(directory)

    assert problems == []
    assert files.agent.fields == {"name": "sp1"}
    assert list(files.backends) == ["redis"]
    assert list(files.tasks) == ["a", "b"]
    assert files.tasks["a"].file == "tasks/a.yaml"


def test_nothing_at_all_is_fine(tmp_path):
    """Every file is optional, and so are the folders."""
    files, problems = read(tmp_path)

    assert (files.agent, files.backends, files.tasks, problems) == (None, {}, {}, [])


def test_a_directory_that_is_not_there_is_an_error(tmp_path):
    """A typing mistake in --config-dir must not look like an empty configuration."""
    with pytest.raises(ConfigError, match="no directory"):
        read_directory(str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [\n", "found line 2, column 1: "),
        ("a: 1\na: 2\n", "found line 2, column 1: the key 'a' stands here twice"),
        ("", "found nothing; expected a mapping (key: value)"),
        ("# only a comment\n", "found nothing; expected a mapping (key: value)"),
        ("- a\n- b\n", "found no mapping; expected a mapping (key: value)"),
        ("just text\n", "found no mapping; expected a mapping (key: value)"),
    ],
)
def test_a_broken_file_is_told_and_harms_no_other(directory, text, problem):
    """One line that says where and what."""
    write(directory, "tasks/bad.yml", text)
    write(directory, "tasks/good.yml", TASK)

    files, (found,) = read(directory)

    assert found.startswith(f"tasks/bad.yml: {problem}")
    assert files.broken == {"tasks/bad.yml"}
    assert list(files.tasks) == ["good"]


@pytest.mark.parametrize("text", ["", "# all of it is optional\n", "{}"])
def test_an_empty_agent_yml_is_fine(directory, text):
    """Shipped, it holds comments only."""
    write(directory, "agent.yml", text)

    files, problems = read(directory)

    assert (files.agent.fields, problems) == ({}, [])


@pytest.mark.parametrize("text", ["", "# host: localhost\n"])
def test_an_empty_backend_file_is_fine(directory, text):
    """Every key of a backend is optional, so all of them may be comments."""
    write(directory, "backends/redis.yml", text)

    files, problems = read(directory)

    assert problems == []
    assert list(files.backends) == ["redis"]


@pytest.mark.parametrize("mode", [0o646, 0o666, 0o602])
def test_a_file_that_others_can_write_is_refused(directory, mode):
    """The daemon is root: whoever can write a task can be root."""
    write(directory, "tasks/bad.yml", TASK, mode)

    files, (problem,) = read(directory)

    assert f"found mode {mode:04o}, which others can write" in problem
    assert files.tasks == {}


@pytest.mark.parametrize("folder", ["backends", "tasks"])
def test_a_folder_that_others_can_write_is_refused(directory, folder):
    """Whoever can write there can replace every file in it."""
    write(directory, f"{folder}/ping.yml", TASK)
    directory.joinpath(folder).chmod(0o757)

    files, (problem,) = read(directory)

    assert problem.startswith(f"{folder}: found mode 0757, which others can write")
    assert (files.backends, files.tasks) == ({}, {})
    assert files.broken == {f"{folder}/ping.yml"}


def test_a_configuration_directory_that_others_can_write_is_refused(directory):
    """Whoever can write there can put another folder in the place of tasks/."""
    write(directory, "tasks/ping.yml", TASK)
    directory.chmod(0o777)

    try:
        _, problems = read(directory)
    except ConfigError as error:
        problems = [str(error)]

    assert "which others can write" in "".join(problems)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(("uid", "gid", "mode"), [(65534, 0, 0o644), (0, 65534, 0o664)])
def test_a_file_of_somebody_else_is_refused(directory, uid, gid, mode):
    """Its owner, or its group where that may write."""
    path = write(directory, "tasks/bad.yml", TASK, mode)
    os.chown(path, uid, gid)

    files, (problem,) = read(directory)

    assert "expected a file that only root can write" in problem
    assert files.tasks == {}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_group_may_read(directory):
    """Only writing is dangerous."""
    path = write(directory, "tasks/good.yml", TASK, 0o640)
    os.chown(path, 0, 65534)

    assert read(directory)[1] == []


def test_a_file_that_cannot_be_read_is_told(directory):
    """A link to nowhere, a folder: broken files like any other."""
    directory.joinpath("tasks/link.yml").symlink_to("/nonexistent")
    directory.joinpath("tasks/folder.yml").mkdir()

    files, problems = read(directory)

    assert [problem.partition(":")[0] for problem in problems] == [
        "tasks/folder.yml", "tasks/link.yml",
    ]  # fmt: skip
    assert all("expected a readable file" in problem for problem in problems)
    assert len(files.broken) == 2


def test_a_file_without_end_is_not_read(directory):
    """A pipe would hold the daemon up for ever, a large file its memory."""
    os.mkfifo(directory / "tasks/pipe.yml", 0o644)
    write(directory, "tasks/large.yml", TASK + "#" * LARGEST)

    files, problems = read(directory)

    assert [problem.partition(": found")[0] for problem in problems] == [
        "tasks/large.yml", "tasks/pipe.yml",
    ]  # fmt: skip
    assert files.tasks == {}


def test_one_name_is_one_file(directory):
    """ping.yml and ping.yaml would both be ping."""
    write(directory, "tasks/ping.yaml", TASK)
    write(directory, "tasks/ping.yml", TASK)

    files, problems = read(directory)

    assert problems == [
        "tasks/ping.yml: found the same name as tasks/ping.yaml; expected one file for each name"
    ]
    assert files.tasks["ping"].file == "tasks/ping.yaml"


@pytest.mark.parametrize(
    ("name", "read"),
    [("a.yml", True), ("a.yaml", True), (".a.yml", False), ("a.yml~", False), ("a.YML", False),
     ("a.example", False), ("yml", False)],
)  # fmt: skip
def test_a_name_tells_whether_a_file_is_read(name, read):
    """Editors and packages leave files about."""
    assert is_yaml(name) is read


# agent.yml


def test_everything_in_agent_yml_is_optional():
    """The defaults are those of the documentation."""
    assert settings() == (Settings(), [])
    assert Settings().state_dir == "/var/lib/ngcp-task-agent"
    assert Settings().local_socket == "/run/ngcp-task-agent/agent.sock"
    assert (Settings().grace, Settings().fact_sources) == (10, None)


def test_every_key_of_agent_yml_is_read():
    """And nothing is left over."""
    found, problems = settings(
        name="prx01a",
        aliases=["proxy", "sip"],
        facts={"role": ["lb", "proxy"], "site": "vienna"},
        fact_sources=["ngcp", {"type": "file", "path": "/x"}],
        state_dir="/srv/state",
        local_socket="run/agent.sock",
        grace=0,
        log={"level": "debug", "format": "json"},
        limits={"max_running": 3, "max_request": "2MiB", "chunk_size": 4096},
    )
    sources = [source.fields for source in found.fact_sources]

    assert problems == []
    assert (found.name, found.aliases) == ("prx01a", ("proxy", "sip"))
    assert found.facts == {"role": {"lb", "proxy"}, "site": {"vienna"}}
    assert sources == [{"type": "ngcp"}, {"type": "file", "path": "/x"}]
    assert (found.state_dir, found.local_socket) == ("/srv/state", "/etc/agent/run/agent.sock")
    assert (found.grace, found.log_level, found.log_format) == (0, "debug", "json")
    assert found.limits == Limits(3, 2 << 20, 4096)


def test_one_fact_source_need_not_be_a_list():
    """And none is none, which is not the same as saying nothing."""
    assert [s.fields for s in settings(fact_sources="ngcp")[0].fact_sources] == [{"type": "ngcp"}]
    assert settings(fact_sources=[])[0].fact_sources == ()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"nmae": "x"}, "nmae: found an unknown key; expected 'name'"),
        ({"name": "a b"}, "name: found 'a b'; expected a name without blanks and , | ; = + * ?"),
        ({"name": "prx*"}, "name: found 'prx*'; expected a name without"),
        ({"aliases": ["a", "b,c"]}, "aliases: found 'b,c'; expected a name without"),
        ({"facts": ["a"]}, "facts: found a list; expected a mapping"),
        ({"facts": {"role": [["a"]]}}, "facts.role.0: found a list; expected a text"),
        ({"fact_sources": [7]}, "fact_sources.0: found 7; expected a mapping"),
        ({"grace": -1}, "grace: found -1; expected a number of seconds from 0 to 86400"),
        ({"log": {"level": "loud"}}, "log.level: found 'loud'; expected one of debug, info,"),
        ({"log": {"levl": "info"}}, "log.levl: found an unknown key; expected 'level'"),
        ({"limits": {"max_running": 0}}, "limits.max_running: found 0; expected a whole number"),
        ({"limits": {"chunk_size": 10}}, "limits.chunk_size: found 10; expected bytes, at least"),
    ],
)
def test_a_mistake_in_agent_yml_is_told(fields, problem):
    """File, key, what stands there, what would be right."""
    _, (found,) = settings(**fields)

    assert found.startswith(f"agent.yml: {problem}")


# Task files


def test_a_task_needs_a_broker_only():
    """Name by file, backend redis, and the documented limits."""
    found, problems = task()

    assert problems == []
    assert (found.name, found.backend, found.broker, found.enabled) == (
        "ping", "redis", "command", True,
    )  # fmt: skip
    assert (found.timeout, found.run_timeout) == (9.5, None)
    assert (found.max_running, found.max_queued, found.description) == (16, 1000, "")


@pytest.mark.parametrize(
    ("fields", "timeout", "run_timeout"),
    [
        ({}, 9.5, None),
        ({"timeout": 3}, 3, None),
        ({"run_timeout": 3600}, None, 3600),
        ({"timeout": 60, "run_timeout": 30}, 60, 30),
        ({"broker_options": {"timeout": 3}}, 3, None),
        ({"broker_options": {"run_timeout": 3600}}, None, 3600),
        ({"timeout": 60, "broker_options": {"run_timeout": 30}}, 60, 30),
    ],
)
def test_the_two_limits_of_a_task(fields, timeout, run_timeout):
    """A run limit given alone replaces the other; both may stand with the broker's options."""
    found, problems = task(**fields)

    assert (found.timeout, found.run_timeout, problems) == (timeout, run_timeout, [])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"broker": None}, "broker: found nothing; expected the broker's name, such as command"),
        ({"name": "a b"}, "name: found 'a b'; expected no blanks and slashes, not agent."),
        ({"name": "agent.ping"}, "name: found 'agent.ping'; expected no blanks and slashes, not"),
        ({"name": "../x"}, "name: found '../x'; expected no blanks and slashes"),
        ({"enabled": "perhaps"}, "enabled: found 'perhaps'; expected yes or no"),
        ({"timeout": 0}, "timeout: found 0; expected a number of seconds from 0.001"),
        ({"timeout": "soon"}, "timeout: found 'soon'; expected a number of seconds"),
        ({"max_running": 0}, "max_running: found 0; expected a whole number from 1"),
        ({"max_queued": -1}, "max_queued: found -1; expected a whole number from 0"),
        ({"broker_options": "x"}, "broker_options: found 'x'; expected a mapping"),
        ({"broker_options": {"timeout": 0}}, "broker_options.timeout: found 0; expected"),
        ({"max_runing": 3}, "max_runing: found an unknown key; expected 'max_running'"),
        (
            {"timeout": 3, "broker_options": {"timeout": 3}},
            "broker_options.timeout: found it here and at the top; expected one of the two",
        ),
    ],
)
def test_a_mistake_in_a_task_is_told(fields, problem):
    """File, key, what stands there, what would be right."""
    _, (found,) = task(**fields)

    assert found.startswith(f"tasks/ping.yml: {problem}")
