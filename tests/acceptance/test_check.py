"""``ngcp-task-agent check`` says all that is wrong, one line an error, and runs nothing."""

import subprocess

import pytest

from .harness import COMMANDS, Daemon, command, write_file

BACKEND = {"host": "127.0.0.1", "port": 6379, "db": 0}
GOOD = {"hello": command("/bin/echo", "hello")}
SOUND = "name: t\nbackend: redis\nbackend_options:\n  control_channel: ngcp-task-agent-redis\n"
COMMAND = SOUND + "broker: command\n"
RUN = COMMAND + "broker_options:\n  run: /bin/true\n"

# name: (file, content, words that stand in one line with the file's name)
BROKEN = {
    "no program": ("tasks/t.yml", COMMAND + "broker_options: {args: []}\n", ["run"]),
    "unknown broker": (
        "tasks/t.yml", SOUND + "broker: comand\nbroker_options: {run: /bin/true}\n",
        ["broker", "comand", "command", "python"]),
    "unknown backend": (
        "tasks/t.yml", RUN.replace("backend: redis", "backend: rediss"), ["backend", "rediss"]),
    "unknown key": ("tasks/t.yml", RUN + "tiemout: 3\n", ["tiemout"]),
    "unknown broker option": ("tasks/t.yml", RUN + "  runn: x\n", ["runn"]),
    "timeout in words": ("tasks/t.yml", RUN + "timeout: soon\n", ["timeout", "soon"]),
    "negative timeout": ("tasks/t.yml", RUN + "timeout: -1\n", ["timeout", "-1"]),
    "max_running of zero": ("tasks/t.yml", RUN + "max_running: 0\n", ["max_running"]),
    "args with a mapping": ("tasks/t.yml", RUN + "  args: {a: 1}\n", ["args"]),
    "unbalanced quotes in args": ("tasks/t.yml", RUN + "  args: \"'x\"\n", ["args"]),
    "bad YAML": ("tasks/t.yml", "name: [t\n", []),
    "a list": ("tasks/t.yml", "- t\n", []),
    "callable without a function": (
        "tasks/t.yml", SOUND + "broker: python\nbroker_options: {callable: nothing}\n",
        ["callable"]),
    "port in words": ("backends/redis.yml", "host: 127.0.0.1\nport: abc\n", ["port", "abc"]),
    "grace in words": ("agent.yml", "name: sp1\ngrace: soon\n", ["grace", "soon"]),
    "unknown agent key": ("agent.yml", "name: sp1\ncolour: red\n", ["colour"]),
    "facts in a list": ("agent.yml", "name: sp1\nfacts: [a, b]\n", ["facts"]),
}  # fmt: skip


def check(config):
    """Return exit status and all that was said."""
    done = subprocess.run(
        [COMMANDS / "ngcp-task-agent", "check", "--config-dir", config],
        capture_output=True,
        text=True,
        timeout=20,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def config(tmp_path):
    """A configuration directory in which all is well."""
    tmp_path.chmod(0o755)
    return Daemon(tmp_path, "sp1", BACKEND, tasks=GOOD).config


def lines_with(text, *words):
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_a_good_configuration_is_0(config):
    """Nothing to say is success."""
    status, text = check(config)

    assert status == 0, text


def test_one_task_and_no_agent_yml_is_enough(config):
    """All of agent.yml is optional."""
    (config / "agent.yml").unlink()

    status, text = check(config)

    assert status == 0, text


def test_the_original_files_load_unchanged(config):
    """The form in which tasks and the redis backend have always been written."""
    write_file(
        config / "tasks" / "ping_10_10_10_10.yml",
        "---\nname: ping_10_10_10_10\nbackend: redis\nbackend_options:\n"
        "  control_channel: ngcp-task-agent-redis\nbroker: command\nbroker_options:\n"
        "  run: ping\n  as_user: root\n  args: -c 4 10.10.10.10\n",
    )

    status, text = check(config)

    assert status == 0, text


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_78_and_named(config, name):
    """``file: key: found; expected``, in one line."""
    file, content, words = BROKEN[name]
    write_file(config / file, content)

    status, text = check(config)

    assert status == 78, text
    assert lines_with(text, file.rpartition("/")[2], *words), text
    assert "Traceback" not in text


STREAMS = RUN.replace("backend: redis\n", "backend: redis_stream\n")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (RUN.replace("control_channel: ngcp-task-agent-redis", "control_stream: jobs"),
         "control_stream"),
        (RUN.replace("backend_options:\n", "backend_options:\n  delivery: anycast\n"), "delivery"),
        (RUN.replace("backend_options:\n", "backend_options:\n  pool: p\n"), "pool"),
        (RUN.replace("backend_options:\n", "backend_options:\n  members: db*\n"), "members"),
        (STREAMS, "control_channel"),
    ],
)  # fmt: skip
def test_a_key_of_another_backend_is_a_mistake(config, text, key):
    """The task would listen on the default channel of all, or the default stream."""
    write_file(config / "tasks" / "t.yml", text)

    status, said = check(config)

    assert status == 78, said
    assert lines_with(said, f"tasks/t.yml: backend_options.{key}: found an unknown key")
    assert "warning" not in said


@pytest.mark.parametrize("text", [RUN, "broker: command\nbroker_options: {run: /bin/true}\n"
                                       "backend: local\n"])  # fmt: skip
def test_retry_where_nothing_is_kept_is_a_warning(config, text):
    """It does no harm, and nothing else."""
    write_file(config / "tasks" / "t.yml", text + "retry: {attempts: 3}\n")

    status, said = check(config)

    assert status == 0, said
    assert lines_with(said, "warning: tasks/t.yml: retry:", "redis_stream")


def test_retry_where_requests_are_kept_is_none(config):
    """Nor is its absence."""
    kept = STREAMS.replace("control_channel", "control_stream")
    write_file(config / "tasks" / "t.yml", kept + "retry: {attempts: 3}\n")
    write_file(config / "tasks" / "u.yml", RUN.replace("name: t", "name: u"))

    status, said = check(config)

    assert status == 0, said
    assert "warning" not in said


def test_every_error_is_said_at_once(config):
    """Two broken tasks, one of them twice, and agent.yml; the sound task is not blamed."""
    write_file(config / "tasks" / "one.yml", RUN + "timeout: soon\nmax_running: many\n")
    write_file(config / "tasks" / "two.yml", "name: [t\n")
    write_file(config / "agent.yml", "name: sp1\ngrace: soon\n")

    status, text = check(config)

    assert status == 78
    assert lines_with(text, "one.yml", "timeout")
    assert lines_with(text, "one.yml", "max_running")
    assert lines_with(text, "two.yml")
    assert lines_with(text, "agent.yml", "grace")
    assert not lines_with(text, "hello.yml")


def test_a_file_that_others_can_write_is_refused(config):
    """Mode 0666 is an error like any other."""
    (config / "tasks" / "hello.yml").chmod(0o666)

    status, text = check(config)

    assert status == 78, text
    assert lines_with(text, "hello.yml")


def test_a_missing_directory_is_78(tmp_path):
    """Not a traceback and not success."""
    status, text = check(tmp_path / "nowhere")

    assert status == 78, text
    assert lines_with(text, "nowhere")
    assert "Traceback" not in text


def test_a_password_is_never_shown(config):
    """Also not in an error about the line beside it."""
    write_file(config / "backends" / "redis.yml", "port: abc\npassword: s3cret-word\n")

    status, text = check(config)

    assert status == 78
    assert "s3cret-word" not in text
