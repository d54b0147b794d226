"""Where monitoring listens is said once, and what is wrong with it is told."""

import grp
import os

import pytest

from ngcp_task_agent import listening
from ngcp_task_agent.app import Loader
from ngcp_task_agent.listening import Listening, read_listening
from ngcp_task_agent.options import Options

OWN_GROUP = grp.getgrgid(os.getgid()).gr_name


def read(**fields):
    options = Options(fields, "agent.yml", "metrics.")
    found = read_listening(options)
    options.close()
    return found, [problem.key for problem in options.problems]


def test_it_is_off_by_default():
    """Nobody gets a port that was not asked for."""
    assert read() == (None, [])


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:9127", "127.0.0.1", 9127),
        ("0.0.0.0:1", "0.0.0.0", 1),
        ("[::1]:65535", "::1", 65535),
        ("localhost:9127", "localhost", 9127),
    ],
)
def test_an_address_and_a_port(address, host, port):
    """As others write them, and as they are shown again."""
    found, problems = read(address=address)

    assert (found, problems) == (Listening(host, port), [])
    assert str(found) == address


def test_a_socket_has_a_mode_and_a_group():
    """The collector's group may read, nobody else."""
    found, problems = read(address="/run/m.sock", mode="0660", group=OWN_GROUP)

    assert problems == []
    assert found == Listening(path="/run/m.sock", mode=0o660, group=os.getgid())
    assert read(address="/run/m.sock")[0].mode == 0o600


@pytest.mark.parametrize(
    "address",
    ["9127", ":9127", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "::1:9127x",
     "prometheus.example.org:9127", "127.0.0.1:٣٤", "127.0.0.1:-1", "run/m.sock"],
)  # fmt: skip
def test_what_is_no_address_is_told(address):
    """A wrong file fails `check`, not the daemon at night."""
    assert read(address=address) == (None, ["metrics.address"])


def test_keys_that_mean_nothing_are_told():
    """A mode of a TCP address protects nobody."""
    assert read(address="127.0.0.1:1", mode="0600")[1] == ["metrics.mode"]
    assert read(address="/s", group="no such group")[1] == ["metrics.group"]
    assert read(adress="/s")[1] == ["metrics.address", "metrics.adress"]


def test_a_missing_library_is_a_problem_and_no_reason_to_stop(tmp_path, monkeypatch):
    """`check` fails and says what to install; the daemon goes on without metrics."""
    (tmp_path / "agent.yml").write_text("metrics: {address: '127.0.0.1:9127'}\n")
    tmp_path.chmod(0o755)
    monkeypatch.setattr(listening, "find_spec", lambda name: None)

    setup = Loader(str(tmp_path)).load()

    assert setup.settings.metrics == Listening("127.0.0.1", 9127)
    [problem] = setup.problems
    assert "agent.yml: metrics: found no Python module prometheus_client" in str(problem)
    assert "python3-prometheus-client" in str(problem)


def test_the_library_is_missed_only_where_it_is_wanted(tmp_path, monkeypatch):
    """Off means off."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr(listening, "find_spec", lambda name: None)

    assert Loader(str(tmp_path)).load().problems == []
