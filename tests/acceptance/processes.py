"""Processes and waiting, seen from the outside: /proc and a clock, nothing of the daemon."""

import os
import signal
import time
from pathlib import Path

PROC = Path("/proc")
POLL = 0.01  # seconds between two looks at a condition


PATIENCE = float(os.environ.get("PATIENCE", "1"))  # script/stress fills the machine on purpose


def until(condition, seconds=5.0, what="the condition"):
    """Look again until *condition* returns something true, which comes back.

    Args:
        condition: Called without arguments.
        seconds: How long to try at most.
        what: Said in the error, e.g. ``"an answer from sp1"``.

    Raises:
        AssertionError: It stayed false for *seconds*.
    """
    end = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise AssertionError(f"{what} did not come within {seconds} s")
        time.sleep(POLL)


def state_and_parent(pid):
    """Return the state letter and the parent's pid, or None when *pid* is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The program's name stands in parentheses and may hold blanks and parentheses itself.
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)


def all_pids():
    return [int(entry) for entry in os.listdir(PROC) if entry.isdigit()]


def descendants(pid):
    """Return every process below *pid*, zombies included: pid → state letter."""
    table = {other: state_and_parent(other) for other in all_pids()}
    found = {}
    parents = {pid}
    while parents:
        children = {
            child: entry[0]
            for child, entry in table.items()
            if entry and entry[1] in parents and child not in found
        }
        found.update(children)
        parents = set(children)
    return found


def marked(marker):
    """Return the pids whose argument vector holds *marker*; a zombie has none."""
    wanted = marker.encode()
    found = set()
    for pid in all_pids():
        try:
            arguments = (PROC / str(pid) / "cmdline").read_bytes()
        except OSError:
            continue
        if wanted in arguments and pid != os.getpid():
            found.add(pid)
    return found


def kill_marked(marker, seconds=5.0):
    """End what a failed test left alive; only processes which carry its own *marker*."""
    end = time.monotonic() + seconds
    while (pids := marked(marker)) and time.monotonic() < end:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def memory(pid, field="VmRSS"):
    """Return *field* of /proc/PID/status in bytes; ``VmHWM`` is the highest VmRSS so far."""
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/{pid}/status has no {field}")


def open_files(pid):
    """Return what the open descriptors of *pid* point to."""
    links = []
    for entry in (PROC / str(pid) / "fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except OSError:
            continue
    return links
