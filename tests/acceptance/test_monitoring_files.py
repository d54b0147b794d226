"""The dashboard and the alerts ask for what a real agent shows, and promtool agrees."""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from .durable import durable
from .harness import World, command, write_file
from .scrape import Monitor, library

ROOT = Path(__file__).parents[2]
RULES = ROOT / "etc" / "prometheus" / "ngcp-task-agent.rules.yml"
RULE_TESTS = ROOT / "tests" / "data" / "alerts.test.yml"
DASHBOARD = ROOT / "etc" / "grafana" / "ngcp-task-agent.json"
MANUAL = ROOT / "docs" / "monitoring.md"
PREFIX = "ngcp_task_agent_"
METRIC = re.compile(r"\b(?:ngcp_task_agent|process)_\w+|\bup\b")
SELECTED = re.compile(r"(\w+)\{([^}]*)\}")
GIVEN_BY_PROMETHEUS = {"instance", "job", "le"}


def alerts():
    """Name → rule."""
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def panels():
    return json.loads(DASHBOARD.read_text())["panels"]


def expressions():
    """All that is asked of Prometheus."""
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [*asked, *(rule["expr"] for rule in alerts().values())]


def variables():
    """What the dashboard's choices are filled with."""
    return [
        variable["query"]["query"]
        for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]
        if variable["type"] == "query"
    ]


@pytest.fixture(scope="module")
def scraped():
    """Metric → names of its labels, of an agent to which everything has happened once."""
    library()
    retry = {"attempts": 2, "backoff": {"base": 0.05, "max": 0.1, "jitter": 0}, "on": ["error"]}
    with World() as world:
        monitor = Monitor()
        daemon = world.daemon(
            tasks={"hello": command("/bin/echo", "hello")}, start=False,
            agent={"metrics": {"address": monitor.address}, "fact_sources": [
                {"type": "static", "facts": {"site": "vienna"}},
            ]},
        )  # fmt: skip
        write_file(daemon.config / "backends" / "redis_stream.yml", {"port": world.server.port})
        daemon.write_task("dies", durable("/bin/false", retry=retry))
        daemon.start()
        world.wait_ready(daemon)
        with world.listener() as listener:
            listener.ask("hello", "sp1")
            body = json.dumps(listener.make("dies", "sp1"))
            listener.redis.xadd("ngcp-task-agent-stream", {"request": body})
            monitor.wait_number(1, "dead_letters_total", 15, backend="redis_stream")
        found = {"up": set()}
        for name, labels in monitor.numbers():
            full = name if name.startswith("process_") else PREFIX + name
            found.setdefault(full, set()).update(key for key, _ in labels)
    return found


@pytest.mark.redis
def test_whatever_is_asked_for_is_shown(scraped):
    """A misspelt name alerts never, and its panel is empty for ever."""
    names = set(itertools.chain(*(METRIC.findall(text) for text in expressions() + variables())))

    assert names - scraped.keys() == set()
    assert len(names) > 30


@pytest.mark.redis
def test_whatever_is_selected_by_is_a_label(scraped):
    """The same for labels; a selection by one that is not there finds nothing."""
    for text in expressions() + variables():
        for name, selection in SELECTED.findall(text):
            labels = set(re.findall(r"(\w+)\s*(?:=|!)", selection))
            assert labels <= scraped[name] | GIVEN_BY_PROMETHEUS, text


@pytest.mark.redis
def test_whatever_is_grouped_by_is_a_label_of_all_in_the_expression(scraped):
    """A sum by what is not there is one sum of all."""
    for text in expressions():
        names = METRIC.findall(text)
        for labels in re.findall(r"\b(?:by|on) \(([\w, ]+)\)", text):
            for name in names:
                wanted = set(labels.split(", ")) - GIVEN_BY_PROMETHEUS
                assert wanted <= scraped[name], text


@pytest.mark.redis
def test_all_that_is_shown_has_a_place_on_the_dashboard(scraped):
    """A number that nobody looks at is not worth its while."""
    asked = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    ours = {name for name in scraped if name.startswith(PREFIX)}
    without = {
        name for name in ours if not re.search(rf"\b{name}\b", asked)
        and not name.endswith(("_created", "_sum", "_count"))
    }  # fmt: skip

    assert without == {PREFIX + "config_problems", PREFIX + "bus_connected"}
    assert len(ours) > 25


@pytest.mark.redis
def test_all_that_is_shown_is_described(scraped):
    """By name and labels, and nothing else is."""
    table = re.findall(r"^\| (`\w+`[^|]*)\|([^|]*)\|", MANUAL.read_text(), re.MULTILINE)
    described = {
        PREFIX + name: set(re.findall(r"`(\w+)`", labels))
        for names, labels in table
        for name in re.findall(r"`(\w+)`", names)
    }
    shown = {
        re.sub("(?<=_seconds)_(bucket|count|sum|created)$", "", name): labels - {"le"}
        for name, labels in scraped.items()
        if name.startswith(PREFIX)
    }

    assert described == shown


def test_panels_have_numbers_and_places_of_their_own():
    """Grafana draws one over the other without a word."""
    places = [panel["gridPos"] for panel in panels()]
    numbers = [panel["id"] for panel in panels()]
    taken = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(numbers) == len(set(numbers))
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


def test_each_alert_has_a_test_in_which_it_fires():
    """An alert that was never seen to fire is a hope."""
    fired = {
        test["alertname"]
        for case in yaml.safe_load(RULE_TESTS.read_text())["tests"]
        for test in case["alert_rule_test"]
        if test["exp_alerts"]
    }

    assert fired == set(alerts())


def test_each_alert_says_what_and_how_bad():
    """Whoever is woken up wants to know where and why."""
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert set(rule["annotations"]) == {"summary", "description"}, name


@pytest.fixture
def promtool():
    """Runs promtool, which Debian's package prometheus has; script/test gets it in CI."""
    path = shutil.which("promtool") or pytest.skip("promtool is missing: apt install prometheus")

    def run(*words):
        found = subprocess.run([path, *words], capture_output=True, text=True, timeout=60)
        assert found.returncode == 0, found.stdout + found.stderr

    return run


def test_promtool_takes_the_rules(promtool):
    """As the server they are for would."""
    promtool("check", "rules", str(RULES))


def test_promtool_runs_the_rules_tests(promtool):
    """Each fires where it ought to, and not beside."""
    promtool("test", "rules", str(RULE_TESTS))


def test_promtool_takes_what_the_dashboard_asks(promtool, tmp_path):
    """As rules, its variables filled in: a typing error in a panel is seen by nobody else."""
    texts = [target["expr"] for panel in panels() for target in panel["targets"]]
    filled = [text.replace("$__rate_interval", "1m") for text in texts]
    rules = [{"record": f"panel:{n}", "expr": text} for n, text in enumerate(filled)]
    path = tmp_path / "dashboard.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    promtool("check", "rules", str(path))


@pytest.mark.redis
def test_promtool_takes_the_metrics(promtool, world):
    """Names, types and help as Prometheus' conventions want them."""
    library()
    monitor = Monitor()
    world.daemon(tasks={"hello": command("/bin/echo")},
                 agent={"metrics": {"address": monitor.address}})  # fmt: skip
    with world.listener() as listener:
        listener.ask("hello", "sp1")
    monitor.wait_number(1, "requests_total", task="hello", outcome="done")

    found = subprocess.run(
        [shutil.which("promtool"), "check", "metrics"], timeout=60,
        input=monitor.get("/metrics")[1], capture_output=True, text=True,
    )  # fmt: skip

    assert (found.returncode, found.stdout + found.stderr) == (0, "")
