"""What `ngcp-task nodes`, `tasks` and `match` print: aligned, marked, and no wider than it may."""

from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent.cli import match, nodes, tasks
from ngcp_task_agent.cli.columns import table
from ngcp_task_agent.destination import Destination
from ngcp_task_agent.matching import match_record
from ngcp_task_agent.presence import Fact, NodeRecord, TaskMark


def fact(*values, age=None, stale=False):
    return Fact(frozenset(values), age, stale)


def mark(digest):
    return TaskMark(digest * 16, "redis", "c")


FLEET = [
    NodeRecord("db01a", "0" * 16, version="1.9.0", uptime=90_000.0, seen=8.0,
               facts={"role": fact("db"), "state": fact("active", age=95.0, stale=True)},
               tasks={"ping": mark("a")}),
    NodeRecord("prx01a", "1" * 16, version="2.0.0", uptime=4000.0, running=12, queued=340,
               facts={"role": fact("proxy", "lb"), "site": fact("vienna"), "state": fact("active"),
                      "status": fact("online"), "note": fact("x" * 50)},
               tasks={"ping": mark("b"), "disk": mark("c")}, left_out={"facts": 3, "tasks": 0}),
    NodeRecord("prx01b", "2" * 16, version="2.0.0", tasks={"ping": mark("b")}),
]  # fmt: skip
words = st.text("abc ", max_size=90)


def test_nodes_at_80_columns():
    """Facts go on below, and nothing goes over the edge."""
    lines = nodes.lines(FLEET, 80)

    assert max(map(len, lines)) <= 80
    assert lines[0].split() == nodes.HEADS
    at = lines[0].index("FACTS")
    facts = "".join(line[at:] for line in lines[1:-4])
    words = ["role=db", "state=active?(95s)", "note=" + "x" * 50, "role=lb+proxy", "site=vienna",
             "state=active", "status=online", "(3factsleftout)"]  # fmt: skip
    assert facts.replace(" ", "") == "".join(words)
    assert all(line[at - 1 : at].strip() == "" for line in lines[:-3])


def test_what_differs_is_marked():
    """And below it stands what the mark means."""
    old, proxy, other, *notes = nodes.lines(FLEET)[1:]

    assert [w for w in ("1.9.0*  ", "  25h  ", "  1*  ") if w not in old] == []
    assert "2.0.0 " in proxy
    assert "  2  " in proxy
    assert "*" not in other
    assert "state=active?(95s)" in old
    assert proxy.endswith("site=vienna state=active status=online (3 facts left out)")
    assert [note[:7] for note in notes] == ["* VERSI", "* TASKS", "? FACTS"]
    assert notes[0].endswith("2.0.0 on 2, 1.9.0 on 1")


def test_what_is_alike_is_not_marked():
    """No marks, and no words about them."""
    assert len(nodes.lines(FLEET[2:])) == 2
    assert "*" not in "".join(nodes.lines(FLEET[2:]))


def test_tasks_show_each_version_of_a_file():
    """The most common first."""
    lines = tasks.lines(FLEET)

    assert [line.split() for line in lines[1:-1]] == [
        ["disk", "cccccccc", "1", "prx01a"],
        ["ping", "bbbbbbbb*", "2", "prx01a,", "prx01b"],
        ["ping", "aaaaaaaa*", "1", "db01a"],
    ]
    assert lines[-1].startswith("* FILE: ")
    assert len(tasks.lines(FLEET[1:])) == 3


def test_a_match_shows_who_takes_it_first_and_each_element_of_the_others():
    """One line an element, with all that does not hold."""
    dst = Destination.parse("prx01b,*|role=web;state=active")
    found = [match_record(dst, record, "") for record in FLEET]

    lines = match.lines(found)

    assert [line.split()[:3] for line in lines[1:] if line[0] != " "] == [
        ["prx01b", "22222222", "yes"],
        ["db01a", "00000000", "no"],
        ["prx01a", "11111111", "no"],
    ]
    assert lines[1].endswith(" prx01b")
    assert lines[2].endswith(" prx01b: name is db01a, not prx01b")
    assert lines[3].strip() == (
        "*|role=web;state=active: role is db, not web; "
        "state is stale (it was active 95 s ago), not active"
    )
    assert max(map(len, match.lines(found, 80))) <= 80


@given(st.lists(st.tuples(words, words, words)), st.integers(220, 300))
def test_a_table_keeps_every_word(rows, width):
    """However it is broken."""
    lines = table(["A", "B", "C"], rows, width)

    assert max(map(len, lines)) <= width
    assert sorted("".join(lines).replace(" ", "")) == sorted(
        "ABC" + "".join("".join(row) for row in rows).replace(" ", "")
    )
