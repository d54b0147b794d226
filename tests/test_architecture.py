"""Imports go down, never up and never sideways; each library has one address; no shell."""

import ast
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ngcp_task_agent"

# From the top. A room is a module or a folder; it imports only from floors below its own.
FLOORS = [
    {"cli"},
    {"daemon"},
    {"app", "own_tasks", "own_record", "host", "metrics"},
    {"agent", "client"},
    {"course", "decisions"},
    {"backends", "brokers", "storage", "nodes"},
    {"jobs", "config", "confirmations"},
    {"dispatch", "replies", "route", "facts", "registry", "systemd", "logs", "watch", "memory"}
    | {"client_answers", "client_nodes"},
    {"interfaces", "users", "processes", "output", "usage", "client_result"},
    {"starter", "account", "matching", "fleet"},
    {"live", "spool", "retry", "journal", "masking", "environment", "reaper", "confinement"}
    | {"schemas", "context", "presence", "audit"},
    {"placeholders", "ledger", "redo", "listening"},
    {"messages", "options", "yamlfile", "cgroups", "pipes", "proctable", "namespaces"}
    | {"records", "seen"},
    {"destination", "ownership", "feedback", "tally"},
    {"errors"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SHELVES = {"backends", "brokers", "storage", "nodes"}
# All of this package that a plug-in may import, ours as well as a third party's.
FOR_PLUG_INS = {"interfaces", "processes", "users", "options", "messages", "destination",
                "errors", "yamlfile", "placeholders", "environment", "confinement",
                "context", "ownership", "feedback"}  # fmt: skip
ADDRESSES = {
    "redis": "backends/redis*.py",
    "yaml": "yamlfile.py",
    "orjson": "messages.py",
    "json": "nowhere: use messages.py",
    "psutil": "usage.py",
    "click": "cli/*.py",
    "jsonschema": "schemas.py",
    "referencing": "schemas.py",
    "uvloop": "cli/serve.py",
    "setproctitle": "cli/serve.py",
    "prometheus_client": "metrics/collector.py",
    "aiohttp": "brokers/http_client.py",
    "yarl": "brokers/http_client.py",
}
SHELLS = {"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """Dotted names of all that *path* imports, wherever in it; ours begin with the package."""
    here = [PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) + 1 - node.level] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            yield from (".".join([*module, alias.name]) for alias in node.names)


def rooms_imported_by(path):
    """Rooms of this package; names that the package itself defines are nobody's room."""
    named = (name.split(".") for name in imports_of(path) if name.startswith(f"{PACKAGE.name}."))
    return {words[1] for words in named} - {"__version__"}


def test_every_module_has_a_floor():
    """A new module is put somewhere on purpose; one that is gone is not kept here."""
    assert {room_of(path) for path in MODULES} == set(FLOOR_OF)


@each_module
def test_imports_go_down(path):
    """Only inside its own folder may a module import from its own floor."""
    own = room_of(path)
    wrong = {room for room in rooms_imported_by(path) - {own} if FLOOR_OF[room] <= FLOOR_OF[own]}

    assert not wrong, f"{own} must not import {', '.join(sorted(wrong))}"


@each_module
def test_plug_ins_import_what_a_third_party_may(path):
    """Ours get no favours: then everybody else's can do what ours can."""
    own = room_of(path)
    wrong = rooms_imported_by(path) - FOR_PLUG_INS - {own} if own in SHELVES else set()

    assert not wrong, f"{own} must not import {', '.join(sorted(wrong))}"


@each_module
def test_each_library_has_one_address(path):
    """There its errors are translated, and there it can be replaced."""
    file = str(path.relative_to(PACKAGE))
    libraries = {name.split(".")[0] for name in imports_of(path)} - {PACKAGE.name}
    outside = {lib for lib in libraries if lib in ADDRESSES or lib not in sys.stdlib_module_names}
    wrong = {lib for lib in outside if not fnmatch(file, ADDRESSES.get(lib, "unknown"))}

    assert not wrong, {lib: ADDRESSES.get(lib, "give it an address here") for lib in wrong}


@each_module
def test_no_shell_anywhere(path):
    """A program gets an argument vector; what comes over the wire is never syntax."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            assert name not in SHELLS, f"line {node.lineno}"
            assert "shell" not in {word.arg for word in node.keywords}, f"line {node.lineno}"


def test_plug_ins_are_named_as_text():
    """What the registry imported would run in every daemon, wanted or not."""
    assert rooms_imported_by(PACKAGE / "registry.py") & SHELVES == set()
