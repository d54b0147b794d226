"""
Looks for a task's function in its source, so that loading a task file runs nobody's code.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path

from ..options import Options
from ..ownership import stranger


def is_async(callable_: str, path: str, options: Options) -> bool:
    """Whether the function is an ``async def``; what is wrong is noted in *options*.

    Args:
        callable_: ``package.module:function``.
        path: Directory to look in, or empty for the import path.
        options: The broker's.
    """
    module, _, name = callable_.partition(":")
    if not all(word.isidentifier() for word in (*module.split("."), name)):
        options.problem("callable", repr(callable_), "package.module:function")
        return False
    if path and not os.path.isdir(path):
        options.problem("path", f"no directory {path}", "an existing directory")
        return False
    source = _find_source(module, path)
    if source is None:
        where = f"below {path}" if path else "that can be imported (see path)"
        options.problem("callable", f"no module {module}", f"a module {where}")
        return False
    for place in (source, *source.parents[: module.count(".") + 1]):
        found = stranger(place.stat())
        if found:
            expected = "a place that only root can write (chmod go-w, chown root)"
            options.problem("callable", f"{place}, {found}", expected)
            return False
    return _is_async(source, name, options)


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
