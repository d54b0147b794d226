"""
The variables that a task gives to what it starts: from its file, and from files of secrets.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator

from .errors import BrokerError
from .options import Options
from .ownership import stranger

LARGEST = 1024 * 1024  # bytes of one file of variables
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CREDENTIALS = "$CREDENTIALS_DIRECTORY"


class Environment:
    """Broker options ``env`` and ``env_files``.

    - ``env``: names to texts
    - ``env_files``: files of lines ``NAME=value`` as in systemd.exec(5), read at the start
      of each job, so that a changed secret is picked up; later ones win, and all of them
      over ``env``. A path may begin with ``$CREDENTIALS_DIRECTORY/``, and with ``-`` if
      the file need not be there; relative ones are relative to the configuration directory.
    """

    def __init__(self, options: Options) -> None:
        self._fixed = options.mapping("env")
        for name in self._fixed:
            if "=" in name or "\0" in name or not name:
                options.problem(f"env.{name}", "'=' in the name", "a variable's name")
        self._files = [_File(path, options) for path in options.names("env_files")]

    def variables(self) -> dict[str, str]:
        """All of them, as things are now.

        Raises:
            BrokerError: A file is missing, unsafe or wrong; the text quotes nothing of it.
        """
        found = dict(self._fixed)
        for file in self._files:
            found.update(file.read())
        return found


class _File:
    def __init__(self, path: str, options: Options) -> None:
        self._optional = path.startswith("-")
        path = path.removeprefix("-")
        if path.startswith(_CREDENTIALS + "/"):
            directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
            path = directory + path.removeprefix(_CREDENTIALS) if directory else path
        self.path = path if path.startswith("$") else os.path.join(options.base, path)
        if not self._optional and not os.access(self.path, os.R_OK):
            found = f"no readable {self.path}"
            if self.path.startswith("$"):
                # `check` runs in a shell, to which the service manager gives no credentials.
                options.note("env_files", f"{self.path}, and no such directory here", "a service")
            else:
                options.problem("env_files", found, "a file of lines NAME=value, or -PATH")

    def read(self) -> dict[str, str]:
        try:
            text = self._text()
        except FileNotFoundError:
            if self._optional:
                return {}
            raise BrokerError(f"env_files: {self.path} is missing") from None
        except (OSError, ValueError) as exc:
            what = exc.strerror if isinstance(exc, OSError) else "no UTF-8"
            raise BrokerError(f"env_files: {self.path}: {what}") from None
        return dict(self._variables(text))

    def _text(self) -> str:
        # Not blocking: whatever else has this name is not waited for.
        fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
                raise BrokerError(
                    f"env_files: {self.path} is no regular file of at most {LARGEST} bytes"
                )
            found = stranger(status)
            if found:
                raise BrokerError(
                    f"env_files: {self.path}: found {found}; expected a file that only root "
                    "can write (chmod go-w, chown root)"
                )
            return file.read(LARGEST + 1).decode("utf-8")

    def _variables(self, text: str) -> Iterator[tuple[str, str]]:
        for number, line in enumerate(text.split("\n"), start=1):
            line = line.strip()
            if not line or line[0] in "#;":
                continue
            name, equals, value = line.partition("=")
            name, value = name.strip(), value.strip()
            try:
                if value[:1] in ("'", '"'):
                    (value,) = shlex.split(value)
            except ValueError:
                equals = ""
            if not equals or not _NAME.fullmatch(name) or "\0" in value:
                # The line itself may be a secret.
                raise BrokerError(f"env_files: {self.path}, line {number}: expected NAME=value")
            yield name, value
