"""How the Redis backend reaches a server: addresses and passwords."""

import pytest

from ngcp_task_agent.backends.redis import RedisBackend
from ngcp_task_agent.options import Options

from .backends import CONTROL, connected, receiving, redis_backend
from .reaching import refused, warnings, works
from .redis_server import free_port
from .waiting import until

pytestmark = pytest.mark.redis

PASSWORD = "p:a/s s@w%rd#"  # every character with a meaning in a URL
IN_URL = "p%3Aa%2Fs%20s%40w%25rd%23"


@pytest.fixture
def locked(make_server):
    """A server with a password, on a socket and a port."""
    server = make_server("--requirepass", PASSWORD)
    server.login = {"password": PASSWORD}
    server.start(tcp=True)
    return server


@pytest.mark.parametrize(
    "form",
    [
        "redis://:{password}@127.0.0.1:{port}",
        "redis://default:{password}@localhost:{port}/0",
        "redis://127.0.0.1:{port}?password={password}",
        "unix://:{password}@{path}",
        "unix://{path}?password={password}",
    ],
)
async def test_url_forms(locked, form):
    """As redis-cli and other clients write them."""
    url = form.format(password=IN_URL, port=locked.port, path=locked.path)

    assert await works(locked, url=url)


async def test_host_and_port(locked):
    """The original's keys."""
    assert await works(locked, host="127.0.0.1", port=locked.port, password=PASSWORD)


@pytest.mark.parametrize("key", ["unix_socket", "unix_socket_path"])
async def test_a_unix_socket(locked, key):
    """With a password, too."""
    assert await works(locked, **{key: str(locked.path)}, password=PASSWORD)


async def test_an_acl_user(locked):
    """With no more rights than it needs."""
    rules = (
        "resetchannels",
        "&control",
        "&fb",
        "-@all",
        "+subscribe",
        "+unsubscribe",
        "+publish",
        "+ping",
    )
    await locked.call("ACL", "SETUSER", "agent", "on", ">secret", *rules, "+client|setname")

    assert await works(locked, unix_socket=str(locked.path), username="agent", password="secret")


async def test_a_password_file(locked, place):
    """The newline at its end is an editor's, not the password's."""
    place.joinpath("password").write_text(PASSWORD + "\n")

    assert await works(locked, unix_socket=str(locked.path), password_file=str(place / "password"))


async def test_a_password_file_in_the_credentials_directory(locked, place, monkeypatch):
    """As systemd hands it over, LoadCredential=."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(place))
    place.joinpath("redis").write_text(PASSWORD)

    assert await works(
        locked, unix_socket=str(locked.path), password_file="$CREDENTIALS_DIRECTORY/redis"
    )


async def test_a_changed_password_is_picked_up(locked, place):
    """File and server are changed, the agent is not told."""
    path = place / "password"
    path.write_text(PASSWORD)
    backend = redis_backend(unix_socket=str(locked.path), password_file=str(path))

    async with receiving(backend) as received, locked.listener("fb") as heard:
        await connected(backend)
        backend.deliver("fb", b"before")
        await until(lambda: heard)
        await locked.call("CONFIG", "SET", "requirepass", "second")
        locked.login = {"password": "second"}
        path.write_text("second")
        await locked.kill(await locked.publisher())
        await locked.kill_subscriber()

        backend.deliver("fb", b"after")
        await locked.publish(CONTROL, b"x")
        await until(lambda: received and len(heard) == 2)


async def test_a_password_file_that_vanishes_is_waited_for(locked, place, caplog):
    """For instance while it is being replaced."""
    path = place / "password"
    path.write_text(PASSWORD)
    backend = redis_backend(unix_socket=str(locked.path), password_file=str(path))

    async with receiving(backend):
        await connected(backend)
        path.unlink()
        await locked.kill(await locked.subscriber())
        await until(lambda: str(path) in caplog.text)
        path.write_text(PASSWORD)
        await connected(backend)


@pytest.mark.parametrize("fields", [{}, {"password": "wrong"}, {"username": "nobody"}])
async def test_a_wrong_login_is_reported_once_and_tried_again(locked, fields, caplog):
    """And never with the password in it."""
    await refused(**{"password": "not this one", **fields}, unix_socket=str(locked.path))

    assert len(warnings(caplog)) == 1
    assert "not this one" not in caplog.text
    assert "wrong" not in caplog.text.replace("WRONGPASS", "")


async def test_a_channel_the_login_may_not_subscribe_to_is_reported(locked, caplog):
    """One task's mistake: the requests for the others arrive."""
    rules = ["on", ">secret", "resetchannels", "&allowed", "&later", "+@all"]
    await locked.call("ACL", "SETUSER", "agent", *rules)
    login = {"username": "agent", "password": "secret"}
    backend = redis_backend(unix_socket=str(locked.path), **login)

    async with receiving(backend, "forbidden", "allowed") as received:
        await connected(backend)
        backend.listen(["forbidden", "allowed", "forbidden too", "later"])
        await until(lambda: len(warnings(caplog)) == 2)
        await locked.publish("allowed", b"1")
        await locked.publish("later", b"2")
        await until(lambda: len(received) == 2)

    assert all("permission" in line.lower() for line in warnings(caplog))


async def test_a_server_that_is_not_there_is_reported_once(caplog):
    """Not again at every attempt."""
    await refused(host="127.0.0.1", port=free_port())

    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"password_file": "/nonexistent/password"},
        {"url": "http://localhost"},
        {"url": "redis://localhost:port"},
        {"port": 70000},
        {"tls": True, "tls_ca_file": "/nonexistent/ca.pem"},
        {"client_name": "two words"},
    ],
)
def test_mistakes_are_found_when_the_file_is_loaded(fields):
    """And not at night."""
    options = Options(fields, "backends/redis.yml")

    RedisBackend(options)

    assert [problem.key in fields for problem in options.problems] == [True]
