"""A table of dst expressions on five nodes: who takes the request, and who keeps silent."""

import json

import pytest

from .harness import World, command
from .wire import ABSENT

pytestmark = pytest.mark.redis

NODES = {
    "sp1": {"state": "active", "status": "online", "role": ["proxy", "lb", "db", "mgmt"]},
    "prx01a": {"state": "active", "status": "online", "role": ["proxy"]},
    "prx01b": {"state": "inactive", "status": "online", "role": "proxy"},
    "lb01a": {"state": "active", "status": "offline", "role": ["lb"]},
    "db01b": {"state": "inactive", "role": ["db"]},  # its status is unknown
}
ALL = "sp1 prx01a prx01b lb01a db01b"
NOBODY = ""

TAKEN = {
    # names
    "sp1": "sp1",
    "prx01a": "prx01a",
    "web99": NOBODY,
    "*": ALL,
    "prx*": "prx01a prx01b",
    "prx01?": "prx01a prx01b",
    "prx01[ab]": "prx01a prx01b",
    "prx01[!b]": "prx01a",
    "?p1": "sp1",
    "*1a": "prx01a lb01a",
    "prx": NOBODY,
    "prx01a*": "prx01a",
    "PRX01A": NOBODY,
    "Prx*": NOBODY,
    "prx01a.example.org": NOBODY,
    # every daemon of this test reaches the bus by loopback
    "local": ALL,
    "localhost": ALL,
    "localhost|state=active": "sp1 prx01a lb01a",
    "Localhost": NOBODY,
    # several elements
    "sp1,lb01a": "sp1 lb01a",
    "sp1,web99": "sp1",
    "sp1,sp1,s*": "sp1",
    "web98,web99": NOBODY,
    # the table of the protocol
    "*|state=active": "sp1 prx01a lb01a",
    "*|status=online": "sp1 prx01a prx01b",
    "*|state=active;role=proxy": "sp1 prx01a",
    "*|state=active;role=proxy+lb": "sp1 prx01a lb01a",
    # a filter belongs to its own element
    "prx01b,lb*,db01?|state=active": "prx01b lb01a",
    "prx01b,lb*,db01?|state=inactive": "prx01b lb01a db01b",
    "prx*|state=inactive,lb*": "prx01b lb01a",
    "prx*|state=inactive,*|role=lb": "prx01b sp1 lb01a",
    "*|role=db,*|role=lb;state=active": "sp1 db01b lb01a",
    # values and several filters
    "*|role=db": "sp1 db01b",
    "*|role=mgmt+db": "sp1 db01b",
    "*|role=proxy;role=lb": "sp1",
    "*|state=active+inactive": ALL,
    "*|state=active;state=inactive": NOBODY,
    "*|status=online+offline": "sp1 prx01a prx01b lb01a",
    "prx01b|state=active": NOBODY,
    "prx01b|state=inactive;role=proxy;status=online": "prx01b",
    # values are compared literally, and everything is case-sensitive
    "*|state=act*": NOBODY,
    "*|state=?ctive": NOBODY,
    "*|role=*": NOBODY,
    "*|role=[dl]b": NOBODY,
    "*|state=Active": NOBODY,
    "*|State=active": NOBODY,
    "*|role=prox": NOBODY,
    # blanks around separators
    " sp1 ": "sp1",
    "sp1 , lb01a": "sp1 lb01a",
    " * | state = active ; role = proxy + lb ": "sp1 prx01a lb01a",
    "s p1": NOBODY,
    "*|state=act ive": NOBODY,
    # unknown keys and facts
    "*|colour=red": NOBODY,
    "*|colour=red;state=active": NOBODY,
    "*|name=sp1": NOBODY,
    "prx01a,*|colour=red": "prx01a",
    "db01b|status=online": NOBODY,
    # malformed
    "": NOBODY,
    " ": NOBODY,
    ",": NOBODY,
    "|": NOBODY,
    "|state=active": NOBODY,
    "*|": NOBODY,
    "*| ": NOBODY,
    "*|state": NOBODY,
    "*|state=": NOBODY,
    "*|=active": NOBODY,
    "*|=": NOBODY,
    "*|;": NOBODY,
    "*|state=active;": NOBODY,
    "*|;state=active": NOBODY,
    "*|state=active;;role=proxy": NOBODY,
    "*|state=active+": NOBODY,
    "*|state=+active": NOBODY,
    "*|state=active++inactive": NOBODY,
    "*|state==active": NOBODY,
    "*|state=active=active": NOBODY,
    "*||state=active": NOBODY,
    "*|state=active|role=proxy": NOBODY,
    "*|state:active": NOBODY,
    "*|state!=active": NOBODY,
    "*;state=active": NOBODY,
    "*&state=active": NOBODY,
    "sp1;prx01a": NOBODY,
    "sp1 prx01a": NOBODY,
    "sp1|prx01a": NOBODY,
    "prx01[ab": NOBODY,
    "[": NOBODY,
    "[]": NOBODY,
    "[!]": NOBODY,
    "!sp1": NOBODY,
    "^sp1$": NOBODY,
    ".*": NOBODY,
    "sp1\0": NOBODY,
    "*|state=active\0": NOBODY,
    "{sp1,prx01a}": NOBODY,
}
# Malformed in one place: the whole expression matches no node, not even the sound elements.
HALF_MALFORMED = [
    "sp1,", ",sp1", "sp1,,lb01a", "sp1,*|", "sp1,*|state", "sp1,*|state=", "*|state=,sp1",
    "sp1,|state=active", "sp1,*|state=active;",
]  # fmt: skip
NO_STRINGS = [ABSENT, None, 5, 0, True, 1.5, [], ["sp1"], {}, {"sp1": 1}]


@pytest.fixture(scope="module")
def takers():
    """Send every expression to all five nodes at once: dst as JSON → names that accepted."""
    with World() as world:
        tasks = {"noop": command("/bin/true", max_queued=5000, timeout=60)}
        for name, facts in NODES.items():
            world.daemon(name, facts=facts, tasks=tasks, ready=False)
        world.wait_ready(*world.daemons)
        with world.listener() as listener:
            sent = {}
            for dst in [*TAKEN, *HALF_MALFORMED, *NO_STRINGS]:
                body = listener.make("noop", dst)
                sent[key_of(dst)] = listener.send_all(
                    [{key: value for key, value in body.items() if value is not ABSENT}]
                )[0]
            listener.fence(30)
            yield {key: accepted_by(listener, ref) for key, ref in sent.items()}


def key_of(dst):
    return "absent" if dst is ABSENT else json.dumps(dst)


def accepted_by(listener, ref):
    assert "rejected" not in listener.statuses(ref)
    return sorted(body["src"] for body in listener.of(ref) if body["status"] == "accepted")


@pytest.mark.parametrize("dst", TAKEN, ids=key_of)
def test_who_takes_it(takers, dst):
    """The nodes that the expression selects accept, each once; the others say nothing."""
    assert takers[key_of(dst)] == sorted(TAKEN[dst].split())


@pytest.mark.parametrize("dst", HALF_MALFORMED, ids=key_of)
def test_a_malformed_element_spoils_the_whole_expression(takers, dst):
    """It fails closed: what cannot be read wholly selects nobody."""
    assert takers[key_of(dst)] == []


@pytest.mark.parametrize("dst", NO_STRINGS, ids=key_of)
def test_what_is_no_string_selects_nobody(takers, dst):
    """Absent, null and other types are malformed too."""
    assert takers[key_of(dst)] == []


def test_the_answers_carry_the_nodes_name_also_by_an_alias():
    """An alias is one more name to be found by; src stays the node's name."""
    with World() as world:
        world.daemon("db01a", agent={"aliases": ["master", "db"]}, tasks={
            "noop": command("/bin/true")
        })  # fmt: skip
        with world.listener() as listener:
            refs = [listener.send("noop", dst) for dst in ("db01a", "master", "m*", "db", "m")]
            listener.fence()
            taken = [accepted_by(listener, ref) for ref in refs]

    assert taken == [["db01a"]] * 4 + [[]]
