"""Process trees that resist: none survives its time limit, its leader, or the daemon's stop."""

import random
import time
from dataclasses import dataclass

import pytest

from .harness import World, command
from .processes import PATIENCE, kill_marked, marked, until

pytestmark = [pytest.mark.redis, pytest.mark.concurrency]

TIME_LIMIT = 1  # seconds of each task in the first half
SURVIVAL = 7.0 * PATIENCE  # seconds from the error until nothing is left: TERM, 5 s, KILL
# Name → lines of a shell script, and how many processes with the marker there are at least.
# The marker is a number of seconds in argv ($1), so that even a bare `sleep` carries it.
RESISTING = {
    "ignores TERM": (["trap '' TERM", 'sleep "$1" & sleep "$1" & wait', 'exec sleep "$1"'], 3),
    "left the session": (["setsid sleep \"$1\" &", 'exec sleep "$1"'], 2),
    "double fork, setsid, deaf": (
        ["trap '' TERM HUP INT", '(setsid sh -c "setsid sleep $1 & exec sleep $1" "$1" &)',
         'exec sleep "$1"'], 3),
    "cleared environment": (
        ["trap '' TERM", '(env -i /usr/bin/setsid /bin/sleep "$1" &)', 'exec sleep "$1"'], 2),
    "holds the pipe open": (["trap '' TERM", '(setsid sleep "$1" &)', 'sleep "$1" &', "wait"], 3),
    "closed every descriptor": (
        ['(setsid sleep "$1" <&- >&- 2>&- &)', 'exec sleep "$1" <&- >&- 2>&-'], 2),
    "answers TERM with more": (
        ['''trap 'setsid sleep "$1" & setsid sleep "$1" & wait' TERM''',
         'sleep "$1" & wait; exec sleep "$1"'], 2),
    "prints without end": (["trap '' TERM PIPE", 'while :; do echo "$1"; sleep 0.01; done'], 1),
    "stopped": (['setsid sh -c \'kill -STOP $$; exec sleep "$0"\' "$1" &', 'exec sleep "$1"'], 2),
    # Each generation starts the next in a session of its own and is gone 20 ms later.
    "hops from pid to pid": (
        ["trap '' TERM", 'if [ "${2:-0}" -ge 700 ]; then exit; fi', "sleep 0.02",
         'setsid "$0" "$1" "$((${2:-0} + 1))" &', '[ "${2:-0}" = 0 ] && exec sleep "$1"'], 2),
}  # fmt: skip
# The leader ends well by itself and leaves these behind.
LEAVING = {
    "in the background": ['sleep "$1" >/dev/null 2>&1 &', "echo bye"],
    "holding the pipe": ['sleep "$1" &', "echo bye"],
    "as a deaf daemon": ["trap '' TERM HUP", '(setsid sleep "$1" </dev/null >/dev/null 2>&1 &)',
                         "echo bye"],
    "as a daemon without environment": ['(env -i /usr/bin/setsid /bin/sleep "$1" &)', "echo bye"],
}  # fmt: skip


def new_marker():
    """Return a number of seconds, 600 and some, which no other process has in its argv."""
    return f"600.{random.SystemRandom().randrange(10**12):012d}"


@dataclass
class Tree:
    """One kind of tree: its task, the marker of its processes, its request."""

    task: str
    marker: str
    size: int = 1
    ref: str = ""


def plant(world, kinds, **options):
    """Return the trees of *kinds* and the tasks that start them."""
    trees = {}
    tasks = {"noop": command("/bin/true")}
    for number, (kind, described) in enumerate(kinds.items()):
        lines, size = described if isinstance(described, tuple) else (described, 0)
        tree = trees[kind] = Tree(f"tree{number}", new_marker(), size)
        script = world.script(f"script{number}", *lines)
        tasks[tree.task] = command(script, tree.marker, **options)
    return trees, tasks


def clear(trees):
    for tree in trees.values():
        kill_marked(tree.marker)


def all_gone(trees):
    return not any(survivors(tree.marker) for tree in trees.values())


def wait_for_end(trees, seconds):
    """Return when all are gone, and after *seconds* in any case."""
    try:
        until(lambda: all_gone(trees), seconds, "the end of all trees")
    except AssertionError:
        pass


def survivors(marker):
    """Look several times: one look at /proc can miss a process that hops from pid to pid."""
    return set().union(*(marked(marker) for _ in range(5)))


@dataclass
class Ending:
    """What became of a tree: its messages, when it was answered, what was alive in the end."""

    statuses: list
    bodies: list
    seconds: float
    survivors: set


def endings(world, listener, trees):
    """Run *trees* side by side to their end, and look SURVIVAL seconds later who is alive."""
    for tree in trees.values():
        tree.ref = listener.send(tree.task)
    listener.talk_all([tree.ref for tree in trees.values()], seconds=20)
    answered = time.monotonic()
    wait_for_end(trees, SURVIVAL)
    listener.fence()
    print(f"all looked at {time.monotonic() - answered:.1f} s after the last answer")
    return {
        kind: Ending(
            listener.statuses(tree.ref),
            listener.of(tree.ref),
            listener.at(tree.ref, "done", "error", "rejected")
            - listener.at(tree.ref, "accepted", "rejected"),
            survivors(tree.marker),
        )
        for kind, tree in trees.items()
    }


@pytest.fixture(scope="module")
def limited():
    """Every resisting tree under a time limit, all at once."""
    yield from ended_trees(RESISTING, timeout=TIME_LIMIT)


@pytest.fixture(scope="module")
def left():
    """Every tree whose leader ends by itself, all at once."""
    yield from ended_trees(LEAVING)


def ended_trees(kinds, **options):
    with World() as world:
        trees, tasks = plant(world, kinds, **options)
        world.daemon(tasks=tasks)
        try:
            yield endings(world, world.listen(), trees)
        finally:
            clear(trees)


@pytest.mark.parametrize("kind", RESISTING)
def test_the_time_limit_is_answered_in_time(limited, kind):
    """The error comes at the limit and does not wait until the tree has given up."""
    ending = limited[kind]

    assert ending.statuses == ["accepted", "error"]
    assert ending.bodies[1]["reason"]
    assert 0.9 * TIME_LIMIT < ending.seconds < TIME_LIMIT + PATIENCE


@pytest.mark.parametrize("kind", RESISTING)
def test_nothing_survives_the_time_limit(limited, kind):
    """TERM, five seconds, KILL: for the whole tree, wherever it went."""
    assert limited[kind].survivors == set()


@pytest.mark.parametrize("kind", LEAVING)
def test_a_leader_that_ends_well_is_done(left, kind):
    """Its answer waits neither for its children nor for the end of the pipe they hold."""
    ending = left[kind]

    assert ending.statuses == ["accepted", "done"]
    assert ending.bodies[1]["data"] == "bye\n"
    assert ending.seconds < 8 * PATIENCE


@pytest.mark.parametrize("kind", LEAVING)
def test_nothing_survives_its_leader(left, kind):
    """What a job leaves behind is ended as well."""
    assert left[kind].survivors == set()


def test_nothing_survives_the_stop_of_the_daemon(world):
    """SIGTERM: a short grace, then each job is answered with an error, and exit 0."""
    trees, tasks = plant(world, RESISTING, timeout=300)
    daemon = world.daemon(tasks=tasks, agent={"grace": 0.5})
    listener = world.listen()
    try:
        for tree in trees.values():
            tree.ref = listener.send(tree.task)
        for kind, tree in trees.items():
            until(lambda t=tree: len(marked(t.marker)) >= t.size, 10, f"the tree that {kind}")

        status = daemon.stop()
        # What has been killed is gone in a moment, what got away stays for much longer.
        wait_for_end(trees, 1)
        alive = {kind for kind, tree in trees.items() if survivors(tree.marker)}
        refs = [tree.ref for tree in trees.values()]
        listener.talk_all(refs, seconds=2)

        assert status == 0
        assert alive == set()
        for ref in refs:
            assert listener.statuses(ref) == ["accepted", "error"]
            assert listener.of(ref)[1]["reason"]
    finally:
        clear(trees)


@pytest.mark.parametrize("turn", range(3))
def test_a_stop_in_the_middle_of_starts_leaves_nothing(world, turn):
    """SIGTERM while a burst of programs is being started: the trap is a start under way."""
    marker = new_marker()
    tasks = {"sleeps": command("/bin/sleep", marker, max_running=64, timeout=300)}
    daemon = world.daemon(tasks=tasks, agent={"grace": 0.1})
    listener = world.listen()
    try:
        refs = listener.send_all([listener.make("sleeps") for _ in range(64)])
        until(lambda: len(marked(marker)) > turn * 8, 5, "the first programs")

        assert daemon.stop() == 0
        assert marked(marker) == set()
        heard = listener.heard
        listener.hear_until(lambda: heard and not listener.hear(0.2), 10, "silence")
        ends = {tuple(listener.statuses(ref)) for ref in refs}
        assert ends <= {("accepted", "error"), ()}
    finally:
        kill_marked(marker)


def test_a_time_limit_in_the_middle_of_starts_leaves_nothing(world):
    """Two hundred jobs whose limit is about as long as their start."""
    marker = new_marker()
    tasks = {"sleeps": command("/bin/sleep", marker, max_running=200, timeout=0.02)}
    daemon = world.daemon(tasks=tasks)
    listener = world.listen()
    try:
        refs = listener.send_all([listener.make("sleeps") for _ in range(200)])
        listener.talk_all(refs, seconds=15)
        until(lambda: not marked(marker), SURVIVAL, "the end of all programs")
        until(lambda: not daemon.zombies, 2, "no zombies")

        assert {tuple(listener.statuses(ref)) for ref in refs} == {("accepted", "error")}
    finally:
        kill_marked(marker)


def test_short_jobs_leave_no_zombies_and_no_descriptors(world):
    """Three hundred jobs later the daemon is what it was."""
    orphan = world.script("orphan", "(setsid true &)", "exit 0")
    daemon = world.daemon(tasks={"noop": command("/bin/true"), "orphan": command(orphan)})
    listener = world.listen()
    listener.talk_all([listener.send(task) for task in ("noop", "orphan") * 20])
    before = len(daemon.fds)

    for _ in range(5):
        burst = [listener.make(task) for task in ("noop",) * 50 + ("orphan",) * 10]
        refs = listener.send_all(burst)
        listener.talk_all(refs, seconds=30)
        assert {tuple(listener.statuses(ref)) for ref in refs} == {("accepted", "done")}

    until(lambda: not daemon.zombies, 5, "no zombies")
    until(lambda: len(daemon.fds) <= before, 5, f"only {before} of {daemon.fds}")


def test_a_stop_waits_for_jobs_within_the_grace_time(world):
    """A job that ends in time is done; what comes meanwhile is not started any more."""
    gate = world.place / "gate"
    script = world.script("waits", f'while ! test -e "{gate}"; do sleep 0.05; done', "echo ok")
    daemon = world.daemon(tasks={"waits": command(script)}, agent={"grace": 8})
    listener = world.listen()
    ref = listener.send("waits")
    listener.hear_until(lambda: listener.statuses(ref) == ["accepted"])

    daemon.signal(15)
    late = []
    until(lambda: late_is_refused(listener, late), 5, "the stop to begin")
    gate.touch()

    assert daemon.process.wait(10) == 0
    assert [body["status"] for body in listener.talk(ref)] == ["accepted", "done"]
    assert listener.of(ref)[1]["data"] == "ok\n"


def late_is_refused(listener, late):
    """Ask by name until there is a rejected or nothing at all; accepted was before the signal."""
    late.append(listener.send("waits", "sp1"))
    end = time.monotonic() + 0.3
    while time.monotonic() < end and not listener.of(late[-1]):
        listener.hear()
    return listener.statuses(late[-1]) in ([], ["rejected"])
