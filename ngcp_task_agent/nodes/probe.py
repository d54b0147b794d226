"""
Runs a small program and tells what it said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..confinement import Confinement
from ..processes import Program

LONGEST = 64 * 1024  # bytes of output that are looked at
_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/",
}


async def probe(argv: Sequence[str], limit: float) -> tuple[int, str]:
    """Run *argv* in a clean environment.

    Args:
        argv: Program and arguments.
        limit: Seconds; then the program and its children are ended.

    Returns:
        Exit code (minus the number of the signal that ended it) and stdout.

    Raises:
        OSError: Not startable, or it took too long (`TimeoutError`).
    """
    # No job: the administrator's own program, which may need sudo or the like.
    program = Program(argv, _ENV, cwd="/", confinement=Confinement(no_new_privileges=False))
    output = b""
    try:
        async with asyncio.timeout(limit):
            while piece := await program.read():
                output = (output + piece)[:LONGEST]
            code = await program.wait()
    except TimeoutError:
        raise TimeoutError(f"{argv[0]} took longer than {limit:g} s") from None
    finally:
        program.finish()
    return code, output.decode("utf-8", "replace")
