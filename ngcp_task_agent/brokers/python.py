"""
Calls a Python function; what it returns is the answer.

An `async def` runs in the daemon's event loop; a plain function runs in a worker
process of its own, which is ended at the time limit. Which of the two it is, is read
from the source, so that loading a task file never runs anybody's code.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from ..errors import BrokerError
from ..interfaces import Job, Output
from ..options import Options
from ..processes import sweep_soon
from .python_pool import Pool

log = logging.getLogger(__name__)


class PythonBroker:
    """Broker options:

    - ``callable``: ``package.module:function``; it gets the request's data as
      keyword arguments, and its result is sent as JSON
    - ``path``: directory the module is looked for in, first; only its owner may be
      able to write there, because the daemon runs what it finds
    """

    def __init__(self, options: Options) -> None:
        self._callable = options.text("callable", required="package.module:function")
        self._path = options.text("path")
        self._module, _, self._name = self._callable.partition(":")
        self._function: Callable[..., Coroutine[Any, Any, Any]] | None = None
        self._pool = Pool(self._callable, self._path)
        self._in_loop = self._check(options) if self._callable else False

    async def run(self, job: Job, output: Output) -> None:
        if self._in_loop:
            output.result(await self._call(job))
        else:
            output.result(await self._pool.call(job))

    async def close(self) -> None:
        self._pool.close()

    async def _call(self, job: Job) -> Any:
        try:
            if self._function is None:
                self._function = await asyncio.to_thread(self._load)
            return await self._function(**job.arguments)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise BrokerError("CancelledError") from exc
        except BaseException as exc:
            # Somebody else's code, in our event loop: not even its SystemExit
            # may end the daemon. The client gets type and text, the log the rest.
            log.exception("task %s, request %.80r: %s failed", job.task, job.uuid, self._callable)
            raise BrokerError(describe_exception(exc)) from exc
        finally:
            sweep_soon()  # it may have started programs by itself

    def _load(self) -> Callable[..., Coroutine[Any, Any, Any]]:
        if self._path and self._path not in sys.path:
            # Behind everything else: a module of the administrator's must not
            # take the place of one the daemon imports later.
            sys.path.append(self._path)
            importlib.invalidate_caches()
        module = importlib.import_module(self._module)
        where = getattr(module, "__file__", None) or ""
        if self._path and not os.path.realpath(where).startswith(
            os.path.realpath(self._path) + "/"
        ):
            raise BrokerError(f"module {self._module} is loaded from {where}, not {self._path}")
        function: Callable[..., Coroutine[Any, Any, Any]] = getattr(module, self._name)
        return function

    def _check(self, options: Options) -> bool:
        """Look for the function in the source; whether it is an ``async def``."""
        if self._path and not os.path.isabs(self._path):
            self._path = os.path.join(options.base, self._path)
            self._pool = Pool(self._callable, self._path)
        names = [*self._module.split("."), self._name]
        if not all(name.isidentifier() for name in names):
            options.problem("callable", repr(self._callable), "package.module:function")
            return False
        if self._path and not os.path.isdir(self._path):
            options.problem("path", f"no directory {self._path}", "an existing directory")
            return False
        source = _find_source(self._module, self._path)
        if source is None:
            where = f"below {self._path}" if self._path else "that can be imported (see path)"
            options.problem("callable", f"no module {self._module}", f"a module {where}")
            return False
        for place in (source, *source.parents[: self._module.count(".") + 1]):
            if others_can_write(place):
                expected = "a place that only root can write (chmod go-w, chown root)"
                options.problem("callable", f"{place}, which others can write", expected)
                return False
        return _is_async(source, self._name, options)


def describe_exception(exc: BaseException) -> str:
    """Type and text, on one line.

    >>> describe_exception(ValueError("no such user"))
    'ValueError: no such user'
    """
    text = " ".join(str(exc).encode("utf-8", "replace").decode().split())
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def others_can_write(path: Path) -> bool:
    """Whether somebody besides root and the daemon's user could change *path*."""
    status = path.stat()
    mine = status.st_uid in (0, os.geteuid())
    group = status.st_mode & 0o020 and status.st_gid not in (0, os.getegid())
    return not mine or bool(group) or bool(status.st_mode & 0o002)


def _find_source(module: str, path: str) -> Path | None:
    first, *rest = module.split(".")
    if path:
        base = Path(path, first)
    else:
        try:
            spec = importlib.util.find_spec(first)  # looks, and does not import
        except (ImportError, ValueError):
            return None
        if spec is None or spec.origin is None:
            return None
        origin = Path(spec.origin)
        base = origin.parent if origin.name == "__init__.py" else origin.with_suffix("")
    base = base.joinpath(*rest)
    for candidate in (base.with_name(base.name + ".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _is_async(source: Path, name: str, options: Options) -> bool:
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError) as exc:
        options.problem("callable", f"{source} with an error ({exc})", "valid Python")
        return False
    for node in tree.body:
        if isinstance(node, ast.AsyncFunctionDef) and node.name == name:
            return True
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return False
    # Assigned or imported there perhaps: a worker process will find out.
    if f"{name}" not in {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
        alias.asname or alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
        for alias in n.names
    }:  # fmt: skip
        options.problem("callable", f"no function {name} in {source}", "a function defined there")
    return False
