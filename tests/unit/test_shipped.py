"""Every file under etc/ loads, and says what is true."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ngcp_task_agent.app import Loader
from ngcp_task_agent.backends.redis_stream import RedisStreamBackend
from ngcp_task_agent.config import (
    AuditSettings,
    JournalSettings,
    Limits,
    Settings,
    audit_path,
    read_settings,
)
from ngcp_task_agent.listening import Listening
from ngcp_task_agent.options import Options

ETC = Path(__file__).parents[2] / "etc"
EXAMPLES = sorted(path.name for path in ETC.glob("tasks/*.example"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """etc/ as an administrator copies it, every example in use."""
    target = tmp_path / "etc"
    shutil.copytree(ETC, target)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in target.glob("tasks/*.example"):
        path.rename(path.with_suffix(""))
    return target


def test_every_shipped_file_loads(directory: Path) -> None:
    """An administrator who copies an example gets a task, not a complaint."""
    setup = Loader(str(directory)).load()

    assert setup.problems == []
    assert setup.warnings == []
    assert len(setup.tasks) == len(EXAMPLES) > 0


def test_agent_yml_shows_the_defaults(directory: Path) -> None:
    """What stands behind a # is the default: taking the # away changes nothing."""
    path = directory / "agent.yml"
    text = path.read_text()
    kept = [key for key in ("state_dir", "local_socket", "grace") if f"\n#{key}:" in text]
    path.write_text("".join(re.findall(rf"^#((?:{'|'.join(kept)}):.*\n)", text, re.MULTILINE)))

    settings = Loader(str(directory)).load().settings

    assert settings == Settings()
    assert len(kept) == 3


def test_agent_yml_shows_the_limits_defaults(directory: Path) -> None:
    """The same for the limits."""
    path = directory / "agent.yml"
    text = path.read_text()
    limits, journal = text.index("#limits:"), text.index("#journal:")
    whole = text[limits:].split("\n\n")[0] + "\n" + text[journal:].split("\n\n")[0]
    path.write_text(whole.replace("#", "", 1).replace("\n#", "\n"))

    settings = Loader(str(directory)).load().settings
    assert (settings.limits, settings.journal) == (Limits(), JournalSettings())


def test_agent_yml_shows_the_audit_log(directory: Path) -> None:
    """With the file that it is by default."""
    path = directory / "agent.yml"
    text = path.read_text()
    whole = text[text.index("#audit:") :].split("\n\n")[0]
    path.write_text(whole.replace("#", "", 1).replace("\n#", "\n"))

    settings = Loader(str(directory)).load().settings
    assert replace(settings.audit, path="") == AuditSettings()
    assert settings.audit.path == audit_path(Settings())


def test_agent_yml_shows_how_metrics_are_turned_on(directory: Path) -> None:
    """Taking the # away gives the address, and then the socket."""
    text = (directory / "agent.yml").read_text()
    section = text[text.index("#metrics:") :].replace("#", "", 1).replace("\n#", "\n")
    assert str(read_agent(section)) == "127.0.0.1:9127"

    lines = [line.replace("  #", "  ", 1) for line in section.splitlines() if "127.0" not in line]
    found = read_agent("\n".join(lines).replace("prometheus ", "root "))

    assert found == Listening(path="/run/ngcp-task-agent/metrics.sock", mode=0o600, group=0)


def read_agent(text: str) -> Listening | None:
    options = Options(yaml.safe_load(text), "agent.yml")
    settings = read_settings(options)
    assert options.problems == []
    return settings.metrics


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_not_live_as_shipped(name: str) -> None:
    """Installing the files runs nothing."""
    assert not name.endswith((".yml", ".yaml"))


def test_the_command_example_with_arguments_loads(directory: Path) -> None:
    """Taking the # away gives a typed task with a value in its args."""
    path = directory / "tasks" / "command.yml"
    text = path.read_text().replace("\n  args: ", "\n  #args: ", 1)
    start, end = text.index("#arguments:"), text.index("\nbroker: ")
    typed = text[start:end].replace("#", "", 1).replace("\n#", "\n")
    path.write_text(text[:start] + typed + text[end:].replace('#args: [-h, "', 'args: [-h, "'))

    setup = Loader(str(directory)).load()

    assert (setup.problems, setup.warnings) == ([], [])
    schema = setup.tasks["disk_usage"].arguments
    assert schema is not None
    assert schema.fault({"path": "/var"}) == ""
    assert schema.fault({"path": "-x"}).startswith("data.path: ")


def test_the_redis_stream_example_names_the_options_there_are() -> None:
    """Whoever takes a # away gets the option, with its default where one is shown."""
    text = (ETC / "backends" / "redis_stream.yml.example").read_text()
    shown = dict(re.findall(r"^#([a-z_]+): +([^ \n]+)", text, re.MULTILINE))
    files = {"password_file", "tls_ca_file", "tls_cert_file", "tls_key_file"}
    ways = {"url", "unix_socket"}
    values = {key: int(v) if v.isdigit() else v for key, v in shown.items() if key not in files}
    values["tls"] = values["presence"] = False
    values["tls_verify"] = True
    options = Options({k: v for k, v in values.items() if k not in ways}, "b.yml")

    RedisStreamBackend(options)

    assert (options.problems, options.unknown()) == ([], [])
    assert values["retention"] == 86400
    assert values["group_expiry"] == 7 * 86400
    assert files | ways <= set(shown)
