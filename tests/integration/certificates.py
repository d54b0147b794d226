"""A certificate authority of the tests' own, made by openssl."""

import shutil
import subprocess
from typing import NamedTuple

from .redis_server import missing

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
# Python 3.13 is strict (VERIFY_X509_STRICT): who may sign has to say so.
USAGE = ["-addext", "keyUsage=critical,digitalSignature,keyCertSign,cRLSign"]


class Pair(NamedTuple):
    """A certificate and its key, both as PEM files."""

    cert: str
    key: str


class Authority:
    """Signs certificates for servers and clients.

    Args:
        place: A directory for its files.
        name: Distinguishes it from other authorities.

    Attributes:
        cert: Its own certificate, which makes the others trusted.
    """

    def __init__(self, place, name):
        if shutil.which("openssl") is None:
            missing("openssl")
        self._place = place
        self._name = name
        self._own = self._pair(name, "-x509", "-subj", f"/CN={name}")
        self.cert = self._own.cert

    def issue(self, name, host):
        """A certificate for *host*, such as ``"IP:127.0.0.1"``."""
        signed_by = ["-CA", self._own.cert, "-CAkey", self._own.key]
        extension = ["-addext", f"subjectAltName={host}"]
        return self._pair(name, "-x509", "-subj", f"/CN={name}", *signed_by, *extension)

    def _pair(self, name, *words):
        cert, key = (str(self._place / f"{self._name}-{name}.{end}") for end in ("crt", "key"))
        subprocess.run(
            ["openssl", "req", *KEY, *USAGE, *words, "-days", "2", "-keyout", key, "-out", cert],
            check=True,
            capture_output=True,
        )
        return Pair(cert, key)
