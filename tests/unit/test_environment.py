import os

import pytest

from ngcp_task_agent.environment import Environment
from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.options import Options


def made(place, **fields):
    options = Options(fields, "tasks/ping.yml", "broker_options.", base=str(place))
    return Environment(options), options


def file(place, text, name="secrets", mode=0o600):
    path = place / name
    path.write_text(text)
    path.chmod(mode)
    return path


def read(place, text):
    file(place, text)
    environment, options = made(place, env_files=["secrets"])
    assert options.problems == []
    return environment.variables()


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"), ("A=", ""), ("  A = b ", "b"), ('A="b c"', "b c"), ("A='b c'", "b c"),
        ("A=b c", "b c"), ("A=b=c", "b=c"), ("A=$HOME `id` #x", "$HOME `id` #x"),
        ('A="with \\"quotes\\""', 'with "quotes"'), ("A=smörgås", "smörgås"),
    ],
)  # fmt: skip
def test_a_line_is_a_name_and_a_value(tmp_path, line, value):
    """As in systemd.exec(5), EnvironmentFile; nothing in it is ever run or replaced."""
    assert read(tmp_path, f"# a comment\n; another\n\n{line}\n") == {"A": value}


@pytest.mark.parametrize("line", ["s3cret", "=s3cret", "A B=s3cret", 'A="s3cret', 'A="s3cret" x',
                                  "1=s3cret"])  # fmt: skip
def test_a_wrong_line_is_named_and_not_quoted(tmp_path, line):
    """It may be the secret itself."""
    with pytest.raises(BrokerError, match=r"secrets, line 2: expected NAME=value$") as caught:
        read(tmp_path, f"A=b\n{line}\n")

    assert "s3cret" not in str(caught.value)


def test_later_files_win_and_all_of_them_over_env(tmp_path):
    """As systemd does it."""
    file(tmp_path, "A=1\nB=1\n", "one")
    file(tmp_path, "B=2\n", "two")
    environment, _ = made(tmp_path, env={"A": "0", "C": "0"}, env_files=["one", "two"])

    assert environment.variables() == {"A": "1", "B": "2", "C": "0"}


def test_a_changed_secret_is_picked_up(tmp_path):
    """Without a reload: secrets are rotated by other programs."""
    file(tmp_path, "A=1\n")
    environment, _ = made(tmp_path, env_files="secrets")
    assert environment.variables() == {"A": "1"}

    file(tmp_path, "A=2\n")

    assert environment.variables() == {"A": "2"}


def test_a_missing_file_is_a_mistake_unless_it_says_so(tmp_path):
    """`check` names it; a job that was started meanwhile fails and runs nothing."""
    environment, options = made(tmp_path, env_files=["none", "-none"])

    assert [problem.key for problem in options.problems] == ["broker_options.env_files"]
    with pytest.raises(BrokerError, match=r"none is missing$"):
        environment.variables()
    assert made(tmp_path, env_files="-none")[0].variables() == {}


def test_a_file_that_others_can_write_is_refused(tmp_path):
    """They would choose LD_PRELOAD."""
    path = file(tmp_path, "A=1\n", mode=0o666)
    environment, _ = made(tmp_path, env_files="secrets")

    with pytest.raises(BrokerError, match=f"{path}: found mode 0666, which others can write"):
        environment.variables()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_refused(tmp_path, make):
    """And never waited for."""
    make(tmp_path / "secrets")
    environment, _ = made(tmp_path, env_files="secrets")

    with pytest.raises(BrokerError, match="env_files: "):
        environment.variables()


def test_credentials_of_the_service_manager(tmp_path, monkeypatch):
    """systemd.exec(5), LoadCredential."""
    file(tmp_path, "A=1\n", "db")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    environment, options = made("/", env_files="$CREDENTIALS_DIRECTORY/db")

    assert environment.variables() == {"A": "1"}
    assert options.problems == options.notes == []


def test_without_a_service_manager_credentials_are_a_warning(tmp_path, monkeypatch):
    """`check` runs in a shell, where they cannot be seen."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    environment, options = made(tmp_path, env_files="$CREDENTIALS_DIRECTORY/db")

    assert options.problems == []
    assert "CREDENTIALS_DIRECTORY" in str(options.notes[0])
    with pytest.raises(BrokerError, match="is missing"):
        environment.variables()


@pytest.mark.parametrize("name", ["A=B", ""])
def test_a_variable_has_a_name(tmp_path, name):
    """An environment cannot hold another."""
    assert made(tmp_path, env={name: "x"})[1].problems
