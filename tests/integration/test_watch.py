"""Changes in real directories, told by the kernel."""

import asyncio
import os
import shutil
from contextlib import asynccontextmanager

import pytest

from ngcp_task_agent.config import is_yaml
from ngcp_task_agent.watch import AT_MOST, SETTLE, Watch

from .alone import open_files
from .loops import both_loops
from .waiting import until

QUIET = 2 * SETTLE  # seconds after which a change would have been told
LATE = 1.0  # seconds that a busy machine may add


class Told:
    """Counts the calls, and the times of them."""

    def __init__(self):
        self.times = []

    def __call__(self):
        self.times.append(asyncio.get_running_loop().time())

    @property
    def count(self):
        return len(self.times)

    async def once(self):
        """Wait until it has been told, and that it was so once."""
        await until(lambda: self.count, SETTLE + LATE, "told")
        await asyncio.sleep(QUIET)
        assert self.count == 1
        self.times.clear()

    async def never(self):
        """Wait for a time in which it would have been told."""
        await asyncio.sleep(QUIET)
        assert self.count == 0


@asynccontextmanager
async def watching(*directories):
    """A watch as the agent has it, for YAML files; and what it tells."""
    told = Told()
    watch = Watch(told, lambda name: not name or is_yaml(name))
    watch.add(map(str, directories))
    try:
        yield told, watch
    finally:
        watch.close()


def write(path, text="a: 1\n"):
    path.write_text(text)
    return path


def write_beside(path, text="a: 1\n"):
    """As a package manager does: the file gets its name when it is complete."""
    write(path.with_name(f".{path.name}.new"), text).rename(path)


@both_loops
async def test_a_new_file_is_told(tmp_path, loop):
    """The plain case."""
    async with watching(tmp_path) as (told, _):
        write(tmp_path / "ping.yml")
        await told.once()


CHANGES = {
    "written to": write,
    "renamed into place": write_beside,
    "removed": os.unlink,
    "renamed away": lambda path: path.rename(path.with_suffix(".off")),
    "another mode": lambda path: path.chmod(0o600),
    "touched": os.utime,
    "linked": lambda path: os.link(path, path.with_name("second.yml")),
    "moved out": lambda path: path.rename(path.parent.parent / "out.yml"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_every_kind_of_change_is_told(tmp_path, change):
    """Also one of the mode alone: a file that others can write is refused."""
    place = tmp_path / "tasks"
    place.mkdir()
    path = write(place / "ping.yml")

    async with watching(place) as (told, _):
        CHANGES[change](path)
        await told.once()


async def test_a_burst_is_told_once(tmp_path):
    """A package brings fifty files: one reading of them all."""
    async with watching(tmp_path) as (told, _):
        for number in range(50):
            write(tmp_path / f"task{number}.yml")
            await asyncio.sleep(0.005)
        await told.once()


async def test_a_stream_of_changes_cannot_put_it_off_for_ever(tmp_path):
    """A script in a loop: what it has done so far becomes live."""
    loop = asyncio.get_running_loop()
    async with watching(tmp_path) as (told, _):
        began = loop.time()
        while not told.count and loop.time() < began + AT_MOST + 2 * LATE:
            write(tmp_path / "ping.yml")
            await asyncio.sleep(SETTLE / 10)

        assert AT_MOST * 0.9 <= told.times[0] - began < AT_MOST + LATE


@pytest.mark.parametrize(
    "name",
    [
        ".ping.yml.swp", ".#ping.yml", "#ping.yml#", "ping.yml~", "4913", ".hidden.yml",
        "ping.yml.dpkg-new", "ping.yml.bak", "README", "ping.json",
    ],
)  # fmt: skip
async def test_other_files_are_not_told(tmp_path, name):
    """What editors, package managers and people leave beside."""
    async with watching(tmp_path) as (told, _):
        write(tmp_path / name)
        (tmp_path / name).unlink()
        await told.never()


async def test_reading_is_no_change(tmp_path):
    """Else the agent would tell itself for ever."""
    path = write(tmp_path / "ping.yml")

    async with watching(tmp_path) as (told, _):
        path.read_text()
        os.listdir(tmp_path)
        path.stat()
        await told.never()


async def test_a_directory_created_later_is_watched_from_then_on(tmp_path):
    """`tasks` need not be there at the start."""
    tasks = tmp_path / "tasks"

    async with watching(tmp_path, tasks) as (told, watch):
        tasks.mkdir()
        await told.once()
        watch.add([str(tmp_path), str(tasks)])
        write(tasks / "ping.yml")
        await told.once()


async def test_a_directory_that_is_replaced_is_watched_again(tmp_path):
    """By a link to another one, or after it was removed."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()

    async with watching(tmp_path, tasks) as (told, watch):
        shutil.rmtree(tasks)
        await told.once()
        tasks.mkdir()
        await told.once()
        watch.add([str(tmp_path), str(tasks)])
        write(tasks / "ping.yml")
        await told.once()


async def test_watching_twice_does_not_tell_twice(tmp_path):
    """Directories are named again after each change."""
    async with watching(tmp_path, tmp_path) as (told, watch):
        watch.add([str(tmp_path)])
        write(tmp_path / "ping.yml")
        await told.once()


async def test_more_changes_than_the_kernel_keeps_are_told_all_the_same(tmp_path):
    """Its queue has 16384 places; that it ran over is an event, too."""
    async with watching(tmp_path) as (told, _):
        for _ in range(9000):
            (tmp_path / "other").touch()
            (tmp_path / "other").unlink()
        write(tmp_path / "ping.yml")
        await until(lambda: told.count, AT_MOST + 2 * LATE)


async def test_after_close_nothing_is_told(tmp_path):
    """Not even what was about to be; and no descriptor is left."""
    before = open_files()
    async with watching(tmp_path) as (told, _):
        write(tmp_path / "ping.yml")
        await asyncio.sleep(SETTLE / 4)

    await told.never()
    assert open_files() == before
