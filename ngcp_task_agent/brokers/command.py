"""
Runs a program; what it prints is the answer.

No shell anywhere: the program gets an argument vector. The administrator's `args`
come first, with the client's values in the places made for them, and its `extra_args`
after them, word by word.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator

from ..confinement import read_confinement
from ..environment import Environment
from ..errors import BrokerError, MessageError
from ..interfaces import Job, Output
from ..options import Options
from ..placeholders import Template
from ..processes import Program
from ..users import User, find_user

MAX_OUTPUT = 64 * 1024 * 1024  # bytes of stdout; beyond, the program is ended
FLOOD_SHOWN = 256 * 1024  # bytes of such output that are sent with the error
ERRORS_KEPT = 64 * 1024  # bytes of stderr looked at for a reason
REASON_LENGTH = 500  # characters of stderr quoted in a reason
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BLANKS = re.compile(r"[ \t\n\v\f\r]+")


class CommandBroker:
    """Broker options, all but `run` optional:

    - ``run``: the program, a path or a name found in PATH
    - ``args``: a list taken as it is, or one text split as a POSIX shell splits it; in a
      word, ``{data.host}`` stands for that value of the request, which never ends the word
    - ``allow_options``: whether such a value may start with ``-``
    - ``as_user``, ``as_group``: who runs it, with the user's supplementary groups
    - ``env``, ``env_files``: added to the clean environment (PATH, HOME, USER, LOGNAME,
      LANG and NGCP_TASK_UUID, NGCP_TASK_NAME, NGCP_TASK_SRC, NGCP_TASK_ATTEMPT); see
      `environment`
    - ``cwd`` (default ``/``), ``umask`` (octal digits, default ``"0022"``)
    - ``stdin``: ``none`` or ``data`` (the request's data)
    - ``ok_exit_codes``: default ``[0]``
    - ``max_output``: bytes of stdout, default 64 MiB
    - ``limits``, ``private_tmp``, ``no_new_privileges``, ``read_only_paths``: see `confinement`
    """

    def __init__(self, options: Options) -> None:
        self._run = options.text("run", required="the program to run")
        self._args = [Template(word) for word in options.words("args")]
        self._allow_options = options.flag("allow_options")
        self._as_user = options.text("as_user")
        self._as_group = options.text("as_group")
        self._environment = Environment(options)
        self._cwd = options.text("cwd", "/")
        self._umask = options.octal("umask", 0o022)
        self._stdin = options.text("stdin", "none", choices=("none", "data"))
        self._ok = _exit_codes(options)
        self._max_output = options.size("max_output", MAX_OUTPUT)
        self._confinement = read_confinement(options)
        if not os.path.isabs(self._cwd):
            options.problem("cwd", repr(self._cwd), "an absolute path")
        if "/" in self._run and not os.path.isabs(self._run):
            options.problem("run", repr(self._run), "an absolute path, or a name found in PATH")
        if Template(self._run).paths:
            expected = "a program that no client chooses; placeholders belong into args"
            options.problem("run", repr(self._run), expected)

    async def run(self, job: Job, output: Output) -> None:
        program = await self._start(job, output)
        try:
            errors = await self._read(program, output)
            code = await program.wait()
        except asyncio.CancelledError:
            await program.end()
            raise
        finally:
            program.finish()  # never holds up the answer
            if program.returncode is not None:
                output.exited(
                    program.returncode,
                    cpu_seconds=program.account.cpu_seconds,
                    peak_memory=program.account.peak_memory,
                )
        if program.account.limit_hit:
            raise BrokerError(program.account.limit_hit)
        if code not in self._ok:
            if output.masks and len(errors) >= ERRORS_KEPT:  # cut, perhaps within a secret
                errors = errors.partition(b"\n")[2]
            raise BrokerError(_describe(code, output.masked(errors.decode("utf-8", "replace"))))

    async def _read(self, program: Program, output: Output) -> bytes:
        """Read all that it says; the end of its stderr."""
        if not (output.followed or output.masks):
            try:
                await self._read_answer(program, output)
            finally:  # also of one that says too much, or is ended meanwhile
                await output.write_error(program.stderr)
            return program.stderr
        reading = asyncio.ensure_future(_read_errors(program, output))
        answering = asyncio.ensure_future(self._read_answer(program, output))
        try:
            done, _ = await asyncio.wait((answering, reading), return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            answering.cancel()
            reading.cancel()
            await asyncio.wait((answering, reading))
        return reading.result()

    async def _read_answer(self, program: Program, output: Output) -> None:
        size = 0
        while piece := await program.read():
            size += len(piece)
            if size > self._max_output:
                output.cut(FLOOD_SHOWN)
                raise BrokerError(f"more than {self._max_output} bytes of output (max_output)")
            await output.write(piece)
            if output.masks:  # which takes its time
                await asyncio.sleep(0)

    async def close(self) -> None:
        """Nothing outlives a job."""

    async def _start(self, job: Job, output: Output) -> Program:
        words = [self._filled(word, job, output) for word in self._args]
        argv: list[str | bytes] = [self._run, *map(_as_bytes, words + _extra_args(job))]
        user = await find_user(self._as_user, self._as_group)
        env = self._variables(job, user)
        output.hide(env)
        if user.switch or self._confinement.has_prefix:
            argv = [*user.switch, _found(self._run, env["PATH"]), *argv[1:]]
        try:
            with _stdin(job, self._stdin) as stdin:
                program = Program(
                    argv, env, cwd=self._cwd, umask=self._umask or 0, stdin=stdin,
                    follow=output.followed or output.masks, confinement=self._confinement,
                    owner=user.uid if user.switch else -1,
                )  # fmt: skip
        except OSError as exc:
            what = self._cwd if exc.filename == self._cwd else self._run
            raise BrokerError(f"cannot start {what}: {exc.strerror or exc}") from exc
        except MessageError as exc:
            raise BrokerError(f"the data cannot be passed on: {exc}") from exc
        except ValueError as exc:  # a NUL character
            raise BrokerError(f"cannot start {self._run}: {exc}") from exc
        output.runs_as(user.name, program.pid)
        return program

    def _filled(self, word: Template, job: Job, output: Output) -> str:
        if not self._allow_options:
            for path, value in zip(word.paths, word.values(job.arguments), strict=True):
                # Wherever it stands: an option may follow "--host=", too, for whoever reads it.
                if value.startswith("-"):
                    found = output.masked(value)[:60]
                    raise BrokerError(
                        f"data.{path}: found {found!r}, which starts with '-'; expected a value "
                        "that cannot be taken for an option (allow_options)"
                    )
        return word.fill(job.arguments)

    def _variables(self, job: Job, user: User) -> dict[str, str]:
        return {
            "PATH": PATH,
            "HOME": user.home,
            "USER": user.name,
            "LOGNAME": user.name,
            "LANG": "C.UTF-8",
            **self._environment.variables(),
            "NGCP_TASK_UUID": job.uuid.replace("\0", ""),
            "NGCP_TASK_NAME": job.task,
            "NGCP_TASK_SRC": job.src.replace("\0", ""),
            "NGCP_TASK_ATTEMPT": str(job.attempt),
        }


def _exit_codes(options: Options) -> frozenset[int]:
    codes = set()
    for text in options.names("ok_exit_codes", ("0",)):
        if text.isdecimal() and int(text) < 256:
            codes.add(int(text))
        else:
            options.problem("ok_exit_codes", repr(text), "whole numbers from 0 to 255")
    return frozenset(codes)


def _as_bytes(word: str) -> bytes:
    # The locale of the daemon would decide, and may know no such character.
    try:
        return word.encode()
    except UnicodeEncodeError:
        raise BrokerError(f"{word[:60]!r} is no text: half of a surrogate pair") from None


def _extra_args(job: Job) -> list[str]:
    # Names that attackers choose come this way. Quotes, $ and ; are ordinary
    # characters, and only ASCII blanks separate words.
    extra = job.arguments.get("extra_args")
    return [word for word in _BLANKS.split(extra) if word] if isinstance(extra, str) else []


def _found(program: str, path: str) -> str:
    # setpriv would say it too, but as an exit code among the program's own.
    found = shutil.which(program, mode=os.F_OK | os.X_OK, path=path)
    if found is None:
        raise BrokerError(f"cannot start {program}: not found, or not to be executed")
    with contextlib.suppress(OSError), open(found, "rb") as file:
        start = file.read(4)
        if start[:2] != b"#!" and start != b"\x7fELF":
            # setpriv, like any execvp(3), would hand it to a shell.
            raise BrokerError(f"cannot start {program}: no program, and no #! line")
    return found


@contextlib.contextmanager
def _stdin(job: Job, kind: str) -> Iterator[int]:
    if kind == "none":
        yield subprocess.DEVNULL
        return
    # A file in memory holds all of it at once: nobody has to feed a pipe.
    fd = os.memfd_create("stdin")
    try:
        with open(os.dup(fd), "wb") as file:
            file.write(job.text().encode())
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


async def _read_errors(program: Program, output: Output) -> bytes:
    errors = b""
    while piece := await program.read_error():
        errors = (errors + piece)[-ERRORS_KEPT:]
        await output.write_error(piece)
    return errors


def _describe(code: int, stderr: str) -> str:
    if code < 0:
        try:
            what = f"killed by signal {signal.Signals(-code).name}"
        except ValueError:
            what = f"killed by signal {-code}"
    else:
        what = f"exit code {code}"
    lines = stderr.strip().splitlines()
    return f"{what}: {lines[-1].strip()[:REASON_LENGTH]}" if lines else what
