"""The three nodes most tests talk to, with the tasks that real clients ask for.

``sp1`` is a single node with every role. Two nodes are both called ``prx01a``: only their
``status`` tells them apart, and nothing in a response does but what their tasks print.
"""

from .harness import command

BAN_DUMP = """\
{
\tentry: 12
\tsize: 1
\tslot: [
\t\t{
\t\t\tname: 11.11.11.1
\t\t\tvalue: 1
\t\t\ttype: int
\t\t}
\t]
}
"""
AUTH_DUMP = BAN_DUMP.replace("11.11.11.1", "user@example.org::auth_count")
STUCK_CALLS = "CallID:[3c26-a1@192.0.2.1] unknown\nCallID:[zz9@192.0.2.2] unknown\n"
RELOADED = "Ok. Table reloaded.\n"

# task, data, options, stdout of each node
FIELD_REQUESTS = {
    "counters": ("clear_call_counters", {}, {}, ""),
    "stuck": ("get_stuck_calls", {"user": "alice"}, {}, STUCK_CALLS),
    "ipban": ("kam_lb_security_ban_dump", {"extra_args": "ipban"}, {}, BAN_DUMP),
    "auth": ("kam_lb_security_ban_dump", {"extra_args": "auth"}, {}, AUTH_DUMP),
    "delete": ("kam_lb_security_ban_delete", {"extra_args": "ipban 11.11.11.1"}, {}, ""),
    "lcr": ("kam_proxy_lcr_reload", {}, {}, RELOADED),
    "dispatcher": ("kam_proxy_dispatcher_reload", {}, {}, RELOADED),
    "dialplan": ("kam_proxy_dialplan_reload", {}, {}, RELOADED),
    "ruleset": (
        "kam_proxy_invalidate_ruleset",
        {},
        {
            "path": "/hm_invalidate_ruleset/",
            "headers": '"P-NGCP-HM-Invalidate-Rule-Set": 7',
        },
        RELOADED,
    ),
}
NODES = (
    ("sp1", {"state": "active", "status": "online", "role": ["proxy", "lb", "mgmt"]}),
    ("prx01a", {"state": "active", "status": "online", "role": ["proxy"]}),
    ("prx01a", {"state": "active", "status": "offline", "role": "proxy"}),
)
PROXIES = 3  # all of them, as it happens


def field_tasks(world):
    """Return the tasks of the real installations, backed by small programs."""
    world.file("ipban.txt", BAN_DUMP)
    world.file("auth.txt", AUTH_DUMP)
    world.file("stuck.txt", STUCK_CALLS)
    # As slow as the programs it stands for: a client of generation c or d is finished when all
    # it has heard of are, and would miss a node whose accepted comes after the others' done.
    slow = "sleep 0.05"
    nothing = world.script("counters", slow)
    stuck = world.script("stuck", slow, 'cat "${0%/*}/stuck.txt"')
    dump = world.script("dump", slow, 'test "$1 $2" = "lb htable.dump" && cat "${0%/*}/$3.txt"')
    delete = world.script(
        "delete", slow, 'test "$1 $2 $3 $4" = "lb htable.delete ipban 11.11.11.1"'
    )
    reload = command(world.script("reload", slow, f'printf "{RELOADED.strip()}\\n"'))
    return {
        "clear_call_counters": command(nothing),
        "get_stuck_calls": command(stuck),
        "kam_lb_security_ban_dump": command(dump, "lb", "htable.dump"),
        "kam_lb_security_ban_delete": command(delete, "lb", "htable.delete"),
        "kam_proxy_lcr_reload": reload,
        "kam_proxy_dispatcher_reload": reload,
        "kam_proxy_dialplan_reload": reload,
        "kam_proxy_invalidate_ruleset": reload,
    }


def failing_tasks(world):
    """Return tasks that are accepted and cannot succeed."""
    fails = world.script("fails", "echo half a result", "echo first >&2", "echo last words >&2",
                         "exit 3")  # fmt: skip
    return {
        "exits_with_3": command(fails),
        "missing_program": command("/nonexistent/program"),
        "unknown_user": command("/bin/true", broker_options={"as_user": "no_such_user"}),
        "killed": command(world.script("killed", "echo alive", "kill -9 $$")),
        "not_executable": command(world.file("plain", "just text\n")),
        "too_long": command("/bin/sleep", "600", timeout=0.5),
    }


def plain_tasks(world, index):
    """Return tasks for single rules; *index* tells the twins apart."""
    return {
        "noop": command("/bin/true"),
        "whoami": command("/bin/echo", f"node {index}"),
        "slow_whoami": command(world.script(f"who{index}", "sleep 0.05", f"echo node {index}")),
        "print_words": command("/usr/bin/printf", "[%s]\\n", "own"),
        "args_as_string": {
            **command("/usr/bin/printf"),
            "broker_options": {"run": "/usr/bin/printf", "args": "'[%s]\\n' 'one word' two"},
        },
        "cat": command("/bin/cat"),
        "one_at_a_time": command("/bin/sleep", "0.5", max_running=1),
        "short_queue": command("/bin/sleep", "1", max_running=1, max_queued=1),
        "side_by_side": command("/bin/sleep", "0.25"),
        "half": command("/bin/true" if index == 0 else "/bin/false"),
        "default_limit": command("/bin/sleep", "600", max_running=1),
    }


def three_nodes(world):
    """Start sp1, prx01a and prx01a on *world*'s redis, and wait until each answers."""
    shared = {**field_tasks(world), **failing_tasks(world)}
    for index, (name, facts) in enumerate(NODES):
        tasks = {**shared, **plain_tasks(world, index)}
        if index == 0:
            tasks["only_on_sp1"] = command("/bin/echo", "only here")
        world.daemon(name, facts=facts, tasks=tasks, ready=False)
    world.wait_ready(*world.daemons)
