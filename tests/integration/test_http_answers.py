"""The http broker with real servers on loopback: what comes back, or does not."""

import asyncio
import os
import subprocess
import sys

import pytest

from ngcp_task_agent.brokers.http_request import MAX_BODY
from ngcp_task_agent.errors import BrokerError

from .certificates import Authority
from .http_server import answer, ask, refusal, serving
from .jobs import Kept, http_broker, job
from .loops import both_loops
from .waiting import until


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (answer("\n no such user\nmore", "404 Not Found"), "status 404: Not Found: no such user"),
        (answer("", "503 Later\x01\u00ff"), "status 503: Later"),
        (answer("\x1b[31mred\u202e", "500 No\tway"), "status 500: No way: [31mred"),
        (answer("x" * 900, "500 "), "status 500: Internal Server Error: " + "x" * 500),
        (
            answer("", "302 Found", location="http://evil.example/"),
            "status 302: Found: redirected to http://evil.example/",
        ),
    ],
    ids=["404", "503", "red", "500", "302"],
)
async def test_a_status_that_is_not_ok_is_an_error(says, reason):
    """With the body as the data all the same."""
    async with serving(says) as server:
        output = Kept()
        with pytest.raises(BrokerError) as caught:
            await http_broker(url=server.url).run(job(), output)

    assert str(caught.value).startswith(reason)
    assert len(str(caught.value)) <= 600
    assert str(caught.value).isprintable()
    assert output.text == says.partition(b"\r\n\r\n")[2]
    assert server.seen == 1


async def test_ok_status_says_what_is_good():
    """Codes and ranges; nothing else is."""
    async with serving(answer("gone", "404 Not Found")) as server:
        assert await ask(http_broker(url=server.url, ok_status=[200, "400-404"])) == "gone"
        server.says = answer("yes")
        assert "status 200" in await refusal(http_broker(url=server.url, ok_status=404))


async def redirect(request, writer):
    """/3 leads to /2, and so on to /0."""
    left = int(request.target.strip("/"))
    further = answer("", "302 Found", location=f"/{left - 1}", set_cookie="a=1")
    writer.write(further if left else answer("end"))


async def test_redirects_are_followed_where_asked_for():
    """A few of them."""
    async with serving(redirect) as server:
        fields = {"follow_redirects": True, "headers": {"Authorization": "s3cret"}}
        assert await ask(http_broker(url=f"{server.url}/5", **fields)) == "end"
        assert len(server.requests) == 6
        assert all(r.headers["authorization"] == "s3cret" for r in server.requests)
        assert not any("cookie" in r.headers for r in server.requests)
        assert (
            await refusal(http_broker(url=f"{server.url}/6", **fields)) == "more than 5 redirects"
        )
        await until(lambda: server.open == 0)


@pytest.mark.parametrize(
    ("status", "method"), [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")]
)
async def test_a_redirect_keeps_method_and_body_where_it_says_so(status, method):
    """RFC 9110, 15.4."""

    async def says(request, writer):
        writer.write(
            answer("end") if request.target == "/b" else answer("", f"{status} X", location="b")
        )

    async with serving(says) as server:
        await ask(http_broker(url=f"{server.url}/a", body="text", follow_redirects=True))

    assert server.requests[1].line == f"{method} /b HTTP/1.1"
    assert server.requests[1].body == (b"text" if method == "POST" else b"")
    assert ("content-type" in server.requests[1].headers) is (method == "POST")


async def test_another_server_gets_no_headers_and_no_body():
    """They are for the one that the task file names."""
    async with serving() as other, serving() as server:
        server.says = answer("", "307 X", location=other.url)
        fields = {"url": server.url, "follow_redirects": True}
        secret = {"Authorization": "s3cret", "X-Key": "s3cret"}
        assert await ask(http_broker(**fields, headers=secret)) == "pong"
        assert "with the body" in await refusal(http_broker(**fields, body="s3cret"))

    assert len(other.requests) == 1
    assert "s3cret" not in str(other.requests)


@pytest.mark.parametrize(
    "location",
    ["ftp://x/", "http://a@b/", "http://[/", "/a b", "file:///etc/passwd"],
)
async def test_a_redirect_to_nowhere_is_an_error(location):
    """The text names it."""
    async with serving(answer("", "302 Found", location=location)) as server:
        reason = await refusal(http_broker(url=server.url, follow_redirects=True))

    assert reason.startswith("status 302: redirected to ")


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "ours")


@both_loops
async def test_tls_is_verified(authority, tmp_path, loop):
    """By the file's authorities, or the system's; for the host that was asked for."""
    good, bad = (authority.issue(n, h) for n, h in (("good", "IP:127.0.0.1"), ("bad", "DNS:lb01a")))
    async with serving(pair=good) as server, serving(pair=bad) as other:
        assert await ask(http_broker(url=server.url, tls_ca_file=authority.cert)) == "pong"
        assert (
            await ask(http_broker(tmp_path, url=server.url, tls_ca_file="ours-ours.crt")) == "pong"
        )
        for broker in (
            http_broker(url=server.url),
            http_broker(url=other.url, tls_ca_file=authority.cert),
        ):
            assert "its certificate is not accepted: " in await refusal(broker)
        plain = http_broker(url=server.url.replace("https", "http"))
        assert "status" not in await refusal(plain)

    assert [len(s.requests) for s in (server, other)] == [2, 0]


async def test_https_never_leads_to_http(authority):
    """What was asked for in secret is not answered in public."""
    async with serving() as other, serving(pair=authority.issue("s", "IP:127.0.0.1")) as server:
        server.says = answer("", "302 Found", location=other.url)
        fields = {"tls_ca_file": authority.cert, "follow_redirects": True}
        assert "from https to http" in await refusal(http_broker(url=server.url, **fields))

    assert other.seen == 0


async def test_a_unix_socket_takes_the_place_of_the_host(place):
    """The URL's host is what the server reads in Host."""
    path = str(place / "s")
    async with serving(path=path) as server:
        assert await ask(http_broker(url="http://api/x", unix_socket=path)) == "pong"
        server.says = answer("", "302 Found", location="https://api/")
        broker = http_broker(url="http://api/", unix_socket=path, follow_redirects=True)
        assert "https" in await refusal(broker)

    assert server.requests[0].headers["host"] == "api"
    reason = await refusal(http_broker(url="http://api/", unix_socket=str(place / "none")))
    assert reason == f"{place}/none: no connection: No such file or directory"


async def test_a_body_that_does_not_end_is_cut():
    """At max_output, and its connection is closed."""

    async def says(request, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with serving(says) as server:
        output = Kept()
        broker = http_broker(url=server.url, max_output="1MiB")
        with pytest.raises(BrokerError, match="more than 1048576 bytes of output"):
            await broker.run(job(), output)
        await until(lambda: server.open == 0)

    assert len(output.text) == 256 * 1024


async def test_pieces_are_passed_on_as_they_come():
    """A client may read along."""
    seen = asyncio.Event()

    async def says(request, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
        await seen.wait()
        writer.write(b"b")

    async with serving(says) as server:
        output = Kept()
        running = asyncio.ensure_future(http_broker(url=server.url).run(job(), output))
        await until(lambda: output.pieces == [b"a"])
        seen.set()
        await running

    assert output.text == b"ab"


ODD = {
    "nothing": (b"", "it closed the connection without an answer"),
    "no http": (b"SSH-2.0-OpenSSH_10.0\r\n\r\n", "an answer that is no HTTP"),
    "broken off": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "broke off before its end"),
    "bad chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "broke off before its end|an answer that is no HTTP",
    ),
    "long header": (
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        "an answer that is no HTTP",
    ),
    "many headers": (
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: 1\r\n" % n for n in range(900)) + b"\r\n",
        r"an answer that is no HTTP|more than 128 headers \(max_headers\)",
    ),
    "packed": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
        "an answer in the encoding 'gzip', not asked for",
    ),
}


@both_loops
@pytest.mark.parametrize("name", ODD)
async def test_an_odd_answer_is_an_error_that_names_the_server(name, loop):
    """In words, and not as a bug of ours."""
    says, expected = ODD[name]

    async def odd(request, writer):
        writer.write(says)
        writer.close()

    async with serving(odd) as server:
        reason = await refusal(http_broker(url=server.url))

    assert reason.startswith(server.url.removeprefix("http://") + ": ")
    assert any(text.replace("\\", "") in reason for text in expected.split("|")), reason
    assert len(reason) < 400


async def test_a_server_that_is_not_there_is_named():
    """What an operator looks for at night."""
    async with serving() as server:
        port = server.url.rpartition(":")[2]
    reason = await refusal(http_broker(url=server.url))
    assert reason == f"127.0.0.1:{port}: no connection: Connection refused"

    reason = await refusal(http_broker(url="http://nowhere.invalid/"))
    assert reason.startswith("nowhere.invalid:80: no address for this name: ")


async def test_a_connection_that_does_not_come_up_is_given_up(place):
    """TLS belongs to it: here the server never says a word."""
    async with serving(b"x") as server:
        url = server.url.replace("http", "https")
        reason = await refusal(http_broker(url=url, connect_timeout=0.2))

    assert reason.endswith(": no connection within 0.2 s (connect_timeout)")


@both_loops
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
async def test_a_cancel_closes_the_connection_at_once(sent, loop):
    """While the answer is waited for, and while it comes."""
    reached = asyncio.Event()

    async def says(request, writer):
        writer.write(sent)
        reached.set()

    async with serving(says) as server:
        running = asyncio.ensure_future(ask(http_broker(url=server.url)))
        await reached.wait()
        await cancelled(running)
        await until(lambda: server.open == 0, 1)


@both_loops
async def test_a_server_that_does_not_read_holds_up_nothing(place, loop):
    """What has not left yet is thrown away; else its connection stayed for ever."""
    reached, done = asyncio.Event(), asyncio.Event()

    async def deaf(reader, writer):
        writer.transport.pause_reading()
        reached.set()
        await done.wait()
        writer.close()

    path = str(place / "s")  # what the kernel holds for a UNIX socket is less than a body
    async with serving(path=path) as server:
        server.handle = deaf
        broker = http_broker(url="http://a/", unix_socket=path, body="{data.x}")
        before = len(os.listdir("/proc/self/fd"))
        running = asyncio.ensure_future(ask(broker, arguments={"x": "x" * MAX_BODY}))
        await reached.wait()
        await asyncio.sleep(0.05)  # until the kernel takes no more
        await cancelled(running)
        # The server's own end stays.
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1, 1)
        done.set()
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before, 1)


async def cancelled(running):
    """Cancel *running*, and see that it ends promptly by that."""
    running.cancel()
    async with asyncio.timeout(0.5):
        (problem,) = await asyncio.gather(running, return_exceptions=True)
    assert isinstance(problem, asyncio.CancelledError)


async def test_jobs_side_by_side_do_not_mix():
    """Each answer belongs to its own request, in whatever order they come."""
    count = 40

    async def says(request, writer):
        await until(lambda: len(server.requests) == count)
        writer.write(answer(request.target))

    async with serving(says) as server:
        broker = http_broker(url=f"{server.url}/{{data.n}}")
        asked = (ask(broker, arguments={"n": n}) for n in range(count))
        assert await asyncio.gather(*asked) == [f"/{n}" for n in range(count)]


# Debian 13's aiohttp leaves it to the collector to close a socket that has just connected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("scheme", ["http", "https"])
@both_loops
async def test_cancelled_wherever_it_is_nothing_is_left(scheme, authority, loop):
    """Step by step through the start, the handshake and the answer."""
    pair = authority.issue("s", "IP:127.0.0.1") if scheme == "https" else None
    async with serving(pair=pair) as server:
        fields = {"tls_ca_file": authority.cert} if pair else {}
        broker = http_broker(url=server.url, **fields)
        before = len(os.listdir("/proc/self/fd"))
        for turns in range(40):
            running = asyncio.ensure_future(ask(broker))
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)

    assert len(asyncio.all_tasks()) == 1


async def test_close_leaves_running_jobs_alone():
    """The task was replaced; who runs may end."""
    go = asyncio.Event()

    async def says(request, writer):
        await go.wait()
        writer.write(answer("pong"))

    async with serving(says) as server:
        broker = http_broker(url=server.url)
        running = asyncio.ensure_future(ask(broker))
        await until(lambda: server.requests)
        await broker.close()
        go.set()
        assert await running == "pong"
        await until(lambda: server.open == 0)


async def test_nothing_is_kept_between_requests(monkeypatch, place):
    """Neither connections nor cookies; no proxy nor password from the environment."""
    (place / ".netrc").write_text("machine 127.0.0.1 login a password s3cret\n")
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    async with serving(answer("pong", set_cookie="a=1")) as server:
        broker = http_broker(url=server.url)
        for _ in range(2):
            await ask(broker)
        await until(lambda: server.open == 0)

    assert server.seen == 2
    for request in server.requests:
        assert not {"cookie", "authorization"} & set(request.headers)


def test_the_library_is_imported_with_the_broker_only():
    """A daemon without such a task does not pay for it."""
    code = "import sys, ngcp_task_agent.cli.serve; sys.exit('aiohttp' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
