import asyncio
import os

import pytest

from ngcp_task_agent import watch
from ngcp_task_agent.watch import Watch

from ..helpers import until


@pytest.fixture(autouse=True)
def prompt(monkeypatch):
    """Settles in hundredths of a second."""
    monkeypatch.setattr(watch, "SETTLE", 0.03)
    monkeypatch.setattr(watch, "AT_MOST", 0.15)


class Told:
    """A watch on *directories* that counts how often it was told of a change."""

    def __init__(self, *directories, concerns=lambda name: True):
        self.count = 0
        self.watch = Watch(self.tell, concerns)
        self.watch.add(map(str, directories))

    def tell(self):
        self.count += 1

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.watch.close()


def changes(path):
    """Each way in which a file comes, changes and goes."""
    yield lambda: path.write_text("a")
    yield lambda: path.chmod(0o600)
    yield lambda: path.rename(path.with_name("b.yml"))
    yield lambda: path.with_name("b.yml").rename(path)
    yield path.unlink
    yield lambda: path.symlink_to("/nonexistent")


async def test_every_change_is_told(tmp_path):
    """Editors write, packages rename, administrators link."""
    async with Told(tmp_path) as told:
        for number, change in enumerate(changes(tmp_path / "a.yml"), start=1):
            change()
            await until(lambda number=number: told.count == number)


async def test_a_burst_of_changes_is_told_once(tmp_path):
    """A package unpacks twenty files; they are read when the last one is there."""
    async with Told(tmp_path) as told:
        for number in range(20):
            tmp_path.joinpath(f"{number}.yml").write_text("a")
            await asyncio.sleep(0)

        await until(lambda: told.count)
        await asyncio.sleep(0.06)
        assert told.count == 1


async def test_changes_without_end_are_told_all_the_same(tmp_path):
    """Somebody who writes all the time must not keep the others' files from being read."""
    async with Told(tmp_path) as told:
        for _ in range(100):
            tmp_path.joinpath("a.yml").write_text("a")
            await asyncio.sleep(0.01)
            if told.count:
                break

        assert told.count


async def test_a_file_of_no_concern_is_not_told(tmp_path):
    """An editor's own files come and go."""
    async with Told(tmp_path, concerns=lambda name: name.endswith(".yml")) as told:
        tmp_path.joinpath("a.yml.swp").write_text("a")
        await asyncio.sleep(0.06)
        assert told.count == 0

        tmp_path.joinpath("a.yml").write_text("a")
        await until(lambda: told.count == 1)


async def test_a_directory_that_comes_later_is_told_and_can_be_added(tmp_path):
    """tasks/ need not be there at the start."""
    folder = tmp_path / "tasks"
    async with Told(tmp_path, folder, concerns=lambda name: not name) as told:
        folder.mkdir()
        await until(lambda: told.count == 1)

        told.watch.add([str(folder), str(folder)])
        folder.joinpath("inner").mkdir()
        await until(lambda: told.count == 2)


async def test_after_close_nothing_is_told(tmp_path, monkeypatch):
    """Not even what was about to be; and it may be closed again."""
    monkeypatch.setattr(watch, "SETTLE", 0.5)
    before = len(os.listdir("/proc/self/fd"))
    async with Told(tmp_path) as told:
        tmp_path.joinpath("a.yml").write_text("a")
        await asyncio.sleep(0.005)
        told.watch.close()

        await asyncio.sleep(0.6)
        assert told.count == 0
    assert len(os.listdir("/proc/self/fd")) == before
