import sys
from importlib.metadata import EntryPoint

import pytest

from ngcp_task_agent import registry
from ngcp_task_agent.errors import PluginError


@pytest.fixture
def installed(monkeypatch):
    """Announces entry points as installed packages do."""

    def install(**points):
        def entry_points(group):
            return [EntryPoint(name, value, group) for name, value in points.items()]

        monkeypatch.setattr(registry, "entry_points", entry_points)

    return install


OURS = [(kind, name) for kind, table in registry.BUILTIN.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), OURS)
def test_each_of_our_own_can_be_imported(kind, name):
    """The table is text; a typing mistake in it shows only here."""
    assert callable(registry.find(kind, name))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("brokers", r"^no broker called 'comand'; known are command, http, python$"),
        ("backends", r"^no backend called 'comand'; known are local, redis, redis_stream$"),
        ("fact_sources", r"^no fact source called 'comand'; known are command, file, ngcp, static"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(kind, says):
    """Most unknown names are known ones, misspelt."""
    with pytest.raises(PluginError, match=says):
        registry.find(kind, "comand")


def test_an_installed_plug_in_is_found(installed):
    """One entry point is all that a package needs."""
    installed(ssh="json:loads")

    assert registry.find("brokers", "ssh").__name__ == "loads"
    assert "ssh" in registry.known("brokers")


def test_nothing_is_imported_but_what_is_named(installed):
    """The daemon is root, and nobody's code runs unasked."""
    installed(ssh="this:s", other="json:loads")

    registry.known("brokers")
    registry.find("brokers", "other")

    assert "this" not in sys.modules


@pytest.mark.parametrize("name", ["command", "ssh"])
def test_a_name_claimed_twice_is_an_error(monkeypatch, name):
    """By a package and by us, or by two packages."""
    points = [EntryPoint(name, f"{package}:Broker", "g") for package in ("one", "two")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)

    with pytest.raises(PluginError, match=f"^broker '{name}' is claimed by .* and (one|two):"):
        registry.known("brokers")


def test_the_same_claim_twice_is_one():
    """A package may be found twice on sys.path."""
    assert registry.known("brokers")["command"] == registry.BUILTIN["brokers"]["command"]


@pytest.mark.parametrize(
    ("value", "says"),
    [("nonesuch.module:Broker", "No module named 'nonesuch'"), ("json:Broker", "no attribute")],
)
def test_a_plug_in_that_cannot_be_imported_says_why(installed, value, says):
    """A library is missing, or another release is installed."""
    installed(ssh=value)

    with pytest.raises(PluginError, match=f"^broker 'ssh' cannot be loaded: .*{says}"):
        registry.find("brokers", "ssh")
