"""How the Redis backend reaches a server by TLS: whom it trusts, and who it is."""

import pytest

from ngcp_task_agent.backends.redis_server import RedisServer
from ngcp_task_agent.options import Options

from .backends import CONTROL, connected, disconnected, receiving, redis_backend
from .certificates import Authority
from .jobs import made
from .reaching import refused, warnings, works
from .redis_fleet import Watched, running
from .redis_server import free_port, missing
from .waiting import until

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture(scope="module")
def certificate(authority):
    return authority.issue("server", "IP:127.0.0.1,DNS:localhost")


@pytest.fixture
def tls(make_server, authority, certificate):
    """Makes a server that listens with TLS; gives its port, too."""

    def make(*settings, certificate=certificate):
        port = free_port()
        words = ["--tls-port", str(port), "--tls-ca-cert-file", authority.cert]
        words += ["--tls-cert-file", certificate.cert, "--tls-key-file", certificate.key]
        server = make_server(*words, "--tls-auth-clients", "no", *settings)
        try:
            server.start()
        except AssertionError:
            missing("a redis-server with TLS")
        return server, port

    return make


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_server_signed_by_the_authority(tls, authority, host):
    """Name and address are both in its certificate."""
    server, port = tls()

    assert await works(server, host=host, port=port, tls=True, tls_ca_file=authority.cert)


async def test_rediss_means_tls(tls, authority):
    """The URL says it all but for the authority."""
    server, port = tls()

    assert await works(server, url=f"rediss://127.0.0.1:{port}/40", tls_ca_file=authority.cert)


async def test_a_server_of_another_authority_is_not_trusted(tls, tmp_path, caplog):
    """Reported once, with a word that can be looked up."""
    _, port = tls()
    other = Authority(tmp_path, "other")

    await refused(host="127.0.0.1", port=port, tls=True, tls_ca_file=other.cert)

    [line] = warnings(caplog)
    assert "CERTIFICATE_VERIFY_FAILED" in line.upper()


async def test_the_system_s_authorities_are_the_default(tls, caplog):
    """Among which ours is not."""
    _, port = tls()

    await refused(host="127.0.0.1", port=port, tls=True)

    assert len(warnings(caplog)) == 1


async def test_a_certificate_for_another_host_is_not_trusted(tls, authority, caplog):
    """Signed by the right authority, for the wrong name."""
    _, port = tls(certificate=authority.issue("elsewhere", "DNS:elsewhere.example"))

    await refused(host="127.0.0.1", port=port, tls=True, tls_ca_file=authority.cert)

    assert len(warnings(caplog)) == 1


async def test_tls_verify_no_takes_any_certificate(tls, authority):
    """Said explicitly, and by nothing else."""
    server, port = tls(certificate=authority.issue("elsewhere", "DNS:elsewhere.example"))

    assert await works(server, host="127.0.0.1", port=port, tls=True, tls_verify=False)


async def test_the_agent_s_own_certificate(tls, authority):
    """Where the server asks for one."""
    server, port = tls("--tls-auth-clients", "yes")
    own = authority.issue("agent", "DNS:agent.example")

    assert await works(
        server, host="127.0.0.1", port=port, tls=True, tls_ca_file=authority.cert,
        tls_cert_file=own.cert, tls_key_file=own.key,
    )  # fmt: skip


@pytest.mark.parametrize("whose", ["nobody's", "another authority's"])
async def test_a_server_that_asks_for_a_certificate_refuses_without_ours(
    tls, authority, tmp_path, caplog, whose
):
    """Said once, in words that lead to the certificate."""
    _, port = tls("--tls-auth-clients", "yes")
    own = {}
    if whose != "nobody's":
        pair = Authority(tmp_path, "other").issue("agent", "DNS:agent.example")
        own = {"tls_cert_file": pair.cert, "tls_key_file": pair.key}

    await refused(host="127.0.0.1", port=port, tls=True, tls_ca_file=authority.cert, **own)

    [line] = warnings(caplog)
    assert "tls_cert_file" in line
    assert "not reached" in line


def test_a_key_without_its_certificate_is_a_mistake(authority):
    """Found when the file is loaded; the other way round, one file may hold both."""
    own = authority.issue("alone", "DNS:agent.example")
    options = Options({"tls": True, "tls_key_file": own.key}, "backends/redis.yml")

    RedisServer(options)

    assert [problem.key for problem in options.problems] == ["tls_cert_file"]


@pytest.mark.parametrize("key", ["tls_ca_file", "tls_cert_file", "tls_key_file"])
def test_a_file_that_cannot_be_read_is_named_by_its_key(authority, key):
    """As it stands in the file, and not as a library calls it."""
    own = authority.issue("named", "DNS:agent.example")
    right = {"tls_ca_file": authority.cert, "tls_cert_file": own.cert, "tls_key_file": own.key}
    options = Options({"tls": True, **right, key: "/nonexistent.pem"}, "backends/redis.yml")

    RedisServer(options)

    assert [problem.key for problem in options.problems] == [key]


async def test_sentinels_by_tls_with_certificates(authority, certificate, place, tls):
    """The same keys for all of them: sentinels, the master, and the next master."""
    tls()  # skips where the server has no TLS
    own = authority.issue("fleet", "DNS:agent.example")
    words = ["--tls-ca-cert-file", authority.cert, "--tls-cert-file", certificate.cert,
             "--tls-key-file", certificate.key, "--tls-replication", "yes"]  # fmt: skip
    login = {"ssl": True, "ssl_ca_certs": authority.cert, "ssl_certfile": own.cert,
             "ssl_keyfile": own.key}  # fmt: skip
    fleet = Watched("redis-server", place, *words, kwargs=login)
    options = {**fleet.options, "tls": True, "tls_ca_file": authority.cert,
               "tls_cert_file": own.cert, "tls_key_file": own.key}  # fmt: skip

    async with running(fleet):
        backend = redis_backend(**options)
        async with receiving(backend) as received:
            await connected(backend)
            fleet.master.kill()
            await disconnected(backend)
            await connected(backend, 10)
            await fleet.replica.call("PUBLISH", CONTROL, b"x")
            await until(lambda: received)
            client = made(RedisServer, options).commands()
            assert await client.set("key", b"x")
            await client.aclose()


async def test_a_plain_connection_to_a_tls_port_is_reported(tls, caplog):
    """And is not taken for a server that is slow."""
    _, port = tls()

    await refused(host="127.0.0.1", port=port)

    assert len(warnings(caplog)) == 1
