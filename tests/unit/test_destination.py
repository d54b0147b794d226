import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent.destination import (
    MAX_CLASSES,
    MAX_LENGTH,
    MAX_PATTERN,
    Destination,
    Element,
    Node,
    matches,
)
from ngcp_task_agent.errors import MessageError

from ..helpers import NODE


def node(name, aliases=(), **facts):
    return Node(name, aliases, {key: frozenset(values.split()) for key, values in facts.items()})


FLEET = [
    node("prx01a", state="active", role="proxy", status="online"),
    node("prx01b", state="standby", role="proxy", status="online"),
    node("lb01", state="active", role="lb", status="online"),
    node("db01a", state="active", role="db", status="offline"),
    node("sp1", state="active", role="proxy lb db", status="online"),
]

blanks = st.text(" \t", max_size=2)
words = st.text("abprx01-_.", min_size=1, max_size=5)
patterns = st.text("abprx01*?-", min_size=1, max_size=6)
# Enough of the alphabet to meet every corner of fnmatch; the separators have been cut away.
hard_patterns = st.text("ab*?[]!^-\\&~.#(){}", min_size=1, max_size=8)
anything = st.text("ab*?[]!-|;=+, ", max_size=12) | st.text(max_size=12)
filters = st.dictionaries(
    st.sampled_from(["state", "role", "status"]),
    st.frozensets(st.sampled_from(["active", "standby", "proxy", "lb", "online"]), min_size=1),
    max_size=3,
).map(lambda filters: tuple(filters.items()))
elements = st.builds(Element, patterns, filters)
destinations = st.lists(elements, min_size=1, max_size=4).map(lambda es: Destination(tuple(es)))
nodes = st.builds(
    Node,
    words | st.just("prx01a"),
    st.lists(words, max_size=2).map(tuple),
    st.dictionaries(
        st.sampled_from(["state", "role"]),
        st.frozensets(st.sampled_from(["active", "standby", "proxy", "lb"])),
    ),
)


@pytest.mark.parametrize(
    ("dst", "takers"),
    [
        ("prx01a", "prx01a"),
        ("prx*", "prx01a prx01b"),
        ("prx01?", "prx01a prx01b"),
        ("prx01[!a]", "prx01b"),
        ("*", "prx01a prx01b lb01 db01a sp1"),
        ("*|state=active", "prx01a lb01 db01a sp1"),
        ("*|status=online", "prx01a prx01b lb01 sp1"),
        ("*|state=active;role=proxy", "prx01a sp1"),
        ("*|state=active;role=proxy+lb", "prx01a lb01 sp1"),
        ("*|role=lb;role=db", "sp1"),
        ("prx01a,lb*,db01?|state=standby", "prx01a lb01"),
        ("prx*|state=standby,db*", "prx01b db01a"),
        ("PRX01A", ""),
        ("*|state=Active", ""),
        ("*|State=active", ""),
        ("*|state=act*", ""),
        ("*|state=?ctive", ""),
        ("*|colour=red", ""),
        ("*|colour=red,sp1", "sp1"),
        ("local", ""),
        ("nosuch", ""),
    ],
)
def test_a_dst_selects_exactly_these_nodes(dst, takers):
    """The table of the protocol, and its neighbours, on five nodes."""
    destination = Destination.parse(dst)

    assert [n.name for n in FLEET if destination.selects(n)] == takers.split()


@pytest.mark.parametrize(
    "dst",
    ["", " ", ",", "a,", ",a", "a,,b", "|", "a|", "|state=active", "a| ", "a|state", "a|=active",
     "a|state=", "a|state=active+", "a|state=+active", "a|state=active;", "a|;state=active",
     "a|state=active|role=lb", "a||b", "a|state=active;;role=lb", "a|state= + ", "*|b,c|"],
)  # fmt: skip
def test_a_malformed_dst_is_refused(dst):
    """It fails closed: nobody takes what cannot be read, and the error names the field."""
    with pytest.raises(MessageError, match=r"^dst: "):
        Destination.parse(dst)


@given(anything)
def test_any_text_is_a_destination_or_a_message_error(text):
    """Whoever may publish chooses every character; nothing else may come out."""
    try:
        destination = Destination.parse(text)
    except MessageError:
        return

    assert destination.elements
    assert destination.selects(NODE) in (True, False)


@given(destinations)
def test_parse_reads_back_what_str_writes(destination):
    """Writing a destination out and reading it in again changes nothing."""
    assert Destination.parse(str(destination)) == destination


@given(destinations, elements, nodes)
def test_one_more_element_never_selects_less(destination, extra, node):
    """Adding an element can only add nodes."""
    narrow = Destination.parse(str(destination))
    wider = Destination.parse(str(Destination((*destination.elements, extra))))

    assert wider.selects(node) >= narrow.selects(node)


@given(destinations, nodes, st.booleans())
def test_elements_do_not_know_of_each_other(destination, node, local):
    """A filter says nothing about the elements beside its own."""
    together = Destination.parse(str(destination)).selects(node, local)
    alone = [Destination.parse(str(Destination((e,)))) for e in destination.elements]

    assert together is any(one.selects(node, local) for one in alone)


@given(destinations, st.data())
def test_blanks_around_separators_do_not_count(destination, data):
    """People write a blank after a comma."""
    spaced = re.sub(
        "[,|;=+]", lambda m: data.draw(blanks) + m[0] + data.draw(blanks), str(destination)
    )

    assert Destination.parse(f" {spaced}\t") == destination


@given(hard_patterns, st.text("ab!^-\\[].", min_size=1, max_size=6))
def test_patterns_mean_what_fnmatch_says(pattern, name):
    """Our own compiled patterns are fnmatch's, without its unlimited cache."""
    assert Destination.parse(pattern).selects(Node(name)) is fnmatchcase(name, pattern)


@given(patterns, nodes)
def test_an_alias_counts_like_the_name(pattern, node):
    """A node answers to each of its names."""
    by_name = [fnmatchcase(name, pattern) for name in node.names]

    assert Destination.parse(pattern).selects(node) is any(by_name)


@pytest.mark.parametrize("dst", ["local", "localhost", "local|state=active", "db*,localhost"])
def test_local_names_the_node_that_the_request_is_local_to(dst):
    """And no other: the whole fleet hears it."""
    destination = Destination.parse(dst)

    assert destination.selects(NODE, local=True)
    assert not destination.selects(NODE, local=False)


def test_a_filter_holds_for_local_too():
    """Being local is a name, and no more than that."""
    assert not Destination.parse("local|state=standby").selects(NODE, local=True)


@pytest.mark.parametrize(
    ("facts", "selected"),
    [({"role": "lb proxy"}, True), ({"role": "db"}, False), ({"role": ""}, False), ({}, False)],
)
def test_any_of_several_values_is_enough_and_none_is_not(facts, selected):
    """An unknown fact, and one without values, match nothing."""
    assert Destination.parse("*|role=lb+web").selects(node("n", **facts)) is selected


@pytest.mark.parametrize(
    ("dst", "names"),
    [
        ("prx01a", True),
        ("db*,prx01a", True),
        ("prx01a|state=active", True),
        ("prx01a|state=standby", False),
        ("*", False),
        ("prx01?", False),
        ("prx01a*,db01", False),
        ("prx01b", False),
    ],
)
def test_only_an_element_without_wildcards_names_a_node(dst, names):
    """Only then may the node say no."""
    assert Destination.parse(dst).names(NODE) is names


def test_a_pattern_is_no_longer_than_any_name():
    """A regular expression costs memory that a stranger must not choose."""
    assert Destination.parse("a" * MAX_PATTERN).selects(Node("a" * MAX_PATTERN))
    with pytest.raises(MessageError, match="at most 255"):
        Destination.parse("a" * MAX_PATTERN + "*")


def test_a_dst_is_no_longer_than_the_largest_fleet():
    """Reading it takes time that a stranger must not choose."""
    Destination.parse(",".join(["prx01a"] * 5000))
    with pytest.raises(MessageError, match=r"^dst: \d+ characters; at most 65536 are read"):
        Destination.parse("prx01a" + " " * MAX_LENGTH)


def test_a_dst_has_few_classes():
    """Each takes a regular expression, and no fleet needs many."""
    Destination.parse(",".join(["prx[ab]"] * MAX_CLASSES))
    with pytest.raises(MessageError, match=r"^dst: 9 times '\['; at most 8 are taken"):
        Destination.parse(",".join(["prx[ab]"] * (MAX_CLASSES + 1)))


@given(st.text("ab*?", min_size=1, max_size=12), st.text("ab", max_size=12))
def test_a_pattern_without_classes_needs_no_regular_expression(pattern, name):
    """And means the same; stars one behind another included."""
    assert matches(name, pattern) is fnmatchcase(name, pattern)


def test_a_spiteful_pattern_costs_little():
    """Backtracking that grows with each star would stop the node for hours."""
    assert not matches("a" * MAX_PATTERN, "a*" * (MAX_PATTERN // 2) + "b")


def test_a_dst_too_long_to_be_remembered_works_as_well():
    """Long texts go another way inside, and mean the same."""
    dst = ",".join(f"node{number}" for number in range(1000))

    assert Destination.parse(dst).selects(Node("node999"))
    assert not Destination.parse(dst).selects(Node("node1000"))


def test_an_error_does_not_quote_without_end():
    """It goes to the log, and a stranger wrote it."""
    with pytest.raises(MessageError) as caught:
        Destination.parse("a|" + "x" * 100_000)

    assert len(str(caught.value)) < 200


@given(destinations, nodes, st.booleans())
def test_an_explanation_agrees_with_the_matcher(destination, node, local):
    """As a whole, and element by element."""
    parsed = Destination.parse(str(destination))

    verdicts = parsed.explain(node, local)

    assert [v.selected for v in verdicts] == [e.selects(node, local) for e in parsed.elements]
    assert any(v.selected for v in verdicts) is parsed.selects(node, local)
    assert ",".join(v.element for v in verdicts) == str(parsed)


@given(destinations, nodes, st.booleans())
def test_an_obstacle_removed_is_an_obstacle_less(destination, node, local):
    """What is named as wanted is what is missing: a node that has it is selected."""
    for element in Destination.parse(str(destination)).elements:
        obstacles = element.explain(node, local).obstacles
        facts = dict(node.facts)
        facts |= {key: frozenset(wanted[:1]) for key, wanted, _ in obstacles if key}
        unnamed = any(not key for key, _, _ in obstacles)

        assert element.selects(Node(node.name, node.aliases, facts), local) is not unnamed


@pytest.mark.parametrize(
    ("dst", "why"),
    [
        ("prx*|state=active", []),
        ("db*", ["name is prx01a, not db*"]),
        ("*|state=standby+failed", ["state is active, not failed or standby"]),
        ("*|colour=red", ["colour is unknown, not red"]),
        ("*|role=db", ["role is lb+proxy, not db"]),
        ("db*|colour=red;state=active", ["name is prx01a, not db*", "colour is unknown, not red"]),
        ("local", ["name is prx01a, not local"]),
    ],
)
def test_an_explanation_names_what_does_not_hold(dst, why):
    """All of it, so that nobody has to ask twice."""
    [verdict] = Destination.parse(dst).explain(NODE)

    assert [str(obstacle) for obstacle in verdict.obstacles] == why


@pytest.mark.parametrize(
    ("src", "near", "local"),
    [("sp1", False, True), ("alias", False, True), ("web01", False, False), ("web01", True, True)],
)
def test_a_request_is_local_to_who_sent_it_and_to_who_is_near(src, near, local):
    """By any of its names."""
    assert Node("sp1", ("alias",)).is_local_to(src, near) is local
