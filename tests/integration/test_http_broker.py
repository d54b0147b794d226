"""The http broker with real servers on loopback: what is asked, and what clients may choose."""

import json

import pytest

from ngcp_task_agent.brokers.http import HttpBroker
from ngcp_task_agent.brokers.http_request import MAX_BODY
from ngcp_task_agent.options import Options

from .http_server import answer, ask, refusal, serving
from .jobs import Kept, http_broker, job
from .loops import both_loops

HOSTILE = [
    "../../admin", "..", ".", "%2e%2e", "a/b", "a?b=c&d", "a#b", "@evil.example", "//evil.example",
    "a b", "a\tb", "a\r\nX-Evil: 1", "a\nb",
    "a%2fb", "a\\b", ";x", "a+b", "\u202egnp.exe", "ü", "\x7f",
    "{data.word}", " ",
]  # fmt: skip


def mistakes(**fields):
    """What is wrong with these options, as the log shows it."""
    options = Options({"url": "http://lb01a/", **fields}, "tasks/ping.yml")
    HttpBroker(options)
    options.close()
    return "\n".join(map(str, options.problems))


@both_loops
async def test_the_body_is_the_answer(loop):
    """Unchanged, whatever it holds."""
    async with serving(answer(b"\xffp\xc3\xb6ng\n")) as server:
        output = Kept()
        await http_broker(url=f"{server.url}/x?y=1").run(job(), output)

    assert output.text == b"\xffp\xc3\xb6ng\n"
    assert server.requests[0].line == "GET /x?y=1 HTTP/1.1"
    assert server.requests[0].headers["accept-encoding"] == "identity"


async def test_a_client_of_ngcp_invalidates_a_rule_set():
    """What it sends is in protocol.md, part 5."""
    async with serving(answer("OK")) as server:
        broker = http_broker(
            url=server.url,
            allow_path="/hm_invalidate_ruleset/",
            allow_headers={"P-NGCP-HM-Invalidate-Rule-Set": r"\d+"},
        )
        path, headers = "/hm_invalidate_ruleset/", '"P-NGCP-HM-Invalidate-Rule-Set": 7'
        said = await ask(broker, data="{}", options={"path": path, "headers": headers})

    assert said == "OK"
    assert server.requests[0].line == "GET /hm_invalidate_ruleset/ HTTP/1.1"
    assert server.requests[0].headers["p-ngcp-hm-invalidate-rule-set"] == "7"


@pytest.mark.parametrize("word", HOSTILE)
async def test_a_value_in_the_url_stays_one_value(word):
    """It is encoded, and what no encoding makes harmless is refused."""
    async with serving() as server:
        broker = http_broker(url=f"{server.url}/user/{{data.word}}/x?name={{data.word}}&b=1")
        if word in (".", ".."):
            assert "data.word" in await refusal(broker, arguments={"word": word})
            assert server.seen == 0
            return
        await ask(broker, arguments={"word": word})

    path, query = server.requests[0].target.split("?")
    start, user, encoded, end = path.split("/")
    assert (start, user, end) == ("", "user", "x")
    assert query == f"name={encoded}&b=1"
    assert encoded.replace("%", "").isascii()
    assert encoded.replace("%", "").replace(".", "").replace("-", "").isalnum()


@pytest.mark.parametrize("values", [("", ""), (".", "."), (".", "")])
async def test_a_step_of_the_path_is_never_empty_nor_a_step_up(values):
    """Put together, two harmless values can be one that is not."""
    async with serving() as server:
        broker = http_broker(url=f"{server.url}/a/{{data.x}}{{data.y}}/b")

        reason = await refusal(broker, arguments=dict(zip("xy", values, strict=True)))

    assert reason.startswith("data.x: found")
    assert server.seen == 0


@pytest.mark.parametrize("word", HOSTILE)
async def test_a_value_in_a_header_stays_in_it(word):
    """On its line, in characters that every server reads the same way."""
    async with serving() as server:
        broker = http_broker(url=server.url, headers={"X-Word": "<{data.word}>"})
        if word.isascii() and word.isprintable():
            await ask(broker, arguments={"word": word})
            assert server.requests[0].headers["x-word"] == f"<{word}>"
            assert "x-evil" not in server.requests[0].headers
        else:
            assert "printable ASCII" in await refusal(broker, arguments={"word": word})
            assert server.seen == 0


@pytest.mark.parametrize("word", HOSTILE + ['", "admin": true, "x": "', "a&admin=1"])
async def test_a_value_in_json_or_a_form_stays_in_it(word):
    """What a value holds is no syntax."""
    async with serving() as server:
        fields = {"user": "{data.word}", "note": "<{data.word}>", "n": 7}
        await ask(http_broker(url=server.url, json=fields), arguments={"word": word})
        await ask(http_broker(url=server.url, form={"u": "{data.word}"}), arguments={"word": word})

    as_json, as_form = server.requests
    assert json.loads(as_json.body) == {"user": word, "note": f"<{word}>", "n": 7}
    assert as_json.line.startswith("POST ")
    assert as_json.headers["content-type"] == "application/json"
    assert as_form.body.startswith(b"u=")
    assert b"&" not in as_form.body
    assert as_form.headers["content-type"] == "application/x-www-form-urlencoded"


async def test_json_may_be_the_data_or_parts_of_any_type():
    """A placeholder alone keeps the type of its value."""
    arguments = {"ids": [1, {"a": None}], "on": True}
    async with serving() as server:
        await ask(http_broker(url=server.url, json="{data}"), arguments=arguments)
        await ask(
            http_broker(url=server.url, json=["{data.ids}", "{data.on}"]), arguments=arguments
        )
        broker = http_broker(url=server.url, json={"a": "{data.missing}"})
        reason = await refusal(broker, arguments=arguments)

    assert [json.loads(r.body) for r in server.requests] == [arguments, [[1, {"a": None}], True]]
    assert reason == "data.missing: found nothing; expected a value"


async def test_a_body_is_text_with_values():
    """As long as a request may be, and no longer."""
    async with serving() as server:
        broker = http_broker(
            url=server.url, method="PUT", body="a={data.a}\n", headers={"Content-Type": "text/x"}
        )
        await ask(broker, arguments={"a": "ü"})
        await ask(broker, arguments={"a": "x" * (MAX_BODY - 3)})
        reason = await refusal(broker, arguments={"a": "x" * MAX_BODY})

    assert server.requests[0].line == "PUT / HTTP/1.1"
    assert server.requests[0].body == "a=ü\n".encode()
    assert server.requests[0].headers["content-type"] == "text/x"
    assert len(server.requests[1].body) == MAX_BODY
    assert reason == f"the body would be {MAX_BODY + 3} bytes long; at most {MAX_BODY}"


@pytest.mark.parametrize(
    "path",
    [
        "hm", "//evil.example/", "http://evil.example/", "/../admin", "/a/%2e%2e/b", "/a/..%2fb",
        "/a/..;x/b", "/a/..%5cb", "/a/.", "/a#b", "/a b", "/a\r\nX: 1", "/%0d%0aX", "/%00",
        "/ü", "/a%2", "/\u202ea", "@evil.example/", "/" + "a" * 3000, ["/a"], 7, {"a": 1},
    ],
)  # fmt: skip
async def test_a_bad_path_is_refused_whatever_the_pattern_allows(path):
    """A pattern such as .* must not open the way to another server or place."""
    async with serving() as server:
        broker = http_broker(url=f"{server.url}/base/", allow_path="(?s).*")

        reason = await refusal(broker, options={"path": path})

    assert reason.startswith("options.path: ")
    assert server.seen == 0


async def test_a_path_goes_behind_the_one_of_the_task():
    """If the whole of it matches; without a pattern nobody is listened to."""
    async with serving() as server:
        broker = http_broker(url=f"{server.url}/base/", allow_path=r"/[a-z]+(\?x=\d)?")
        await ask(broker, options={"path": "/abc?x=7"})
        await ask(broker)
        await ask(http_broker(url=f"{server.url}/a"), options={"path": "/b", "headers": "X: 1"})
        reasons = [await refusal(broker, options={"path": p}) for p in ("/abc/", "/ABC", "/a?x=77")]
        keyed = http_broker(url=f"{server.url}/?key=1", allow_path=".*")
        await ask(keyed, options={"path": "/a"})
        reasons.append(await refusal(keyed, options={"path": "/a?key=2"}))

    assert [r.target for r in server.requests] == ["/base/abc?x=7", "/base/", "/a", "/a?key=1"]
    assert "x" not in server.requests[2].headers
    assert all(reason.startswith("options.path: found ") for reason in reasons)


FORMS = [
    {"X-A": 7, "x-b": "two"},
    '{"X-A": 7, "x-b": "two"}',
    '"X-A": 7, "x-b": "two"',
    "X-A: 7\nx-b: two",
    "X-A: 7\r\nx-b: two\r\n",
]


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
async def test_headers_come_in_many_forms(form):
    """And replace those of the task, whose names are not case-sensitive."""
    async with serving() as server:
        broker = http_broker(
            url=server.url,
            headers={"x-a": "mine", "X-C": "kept"},
            allow_headers={"x-A": "[0-9]", "X-B": ".*"},
        )
        await ask(broker, options={"headers": form})

    headers = server.requests[0].headers
    assert (headers["x-a"], headers["x-b"], headers["x-c"]) == ("7", "two", "kept")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "a\r\nX-Evil: 1"}, {"X-A": "a\nb"}, {"X-A": "a\0"}, {"X-A": "ü"}, {"X-A": "\u202e"},
        {"X-A": None}, {"X-A": ["a"]}, {"X-A": True}, {"X-A": "a", "x-a": "b"}, {"X-A": "x" * 9000},
        {"X-Other": "1"}, {"X-A\r\nX-Evil": "1"}, {"X-A ": "1"}, {"": "1"},
        {"Host": "evil.example"}, {"Content-Length": "0"}, {"transfer-encoding": "chunked"},
        {"Connection": "close"},
        {f"X-{number}": 1 for number in range(100)}, "X-A", "X-A 1", '"X-A": ', "X-A: 1\nX-A: 2",
        "X-A: a\rX-Evil: 1", "\n X-A: 1", ["X-A"], 7, "a\u2028: 1",
    ],
)  # fmt: skip
async def test_bad_headers_are_refused_whatever_the_pattern_allows(headers):
    """One line each, and none that says how the message travels."""
    async with serving() as server:
        broker = http_broker(url=server.url, allow_headers={"X-A": "(?s).*"})

        reason = await refusal(broker, options={"headers": headers})

    assert reason.startswith("options.headers: ")
    assert server.seen == 0


async def test_a_header_must_match_wholly():
    """The pattern is what the administrator trusts."""
    broker = http_broker(url="http://127.0.0.1:1/", allow_headers={"X-A": "[0-9]+"})

    reason = await refusal(broker, options={"headers": {"X-A": "7 or more"}})

    assert reason == "options.headers: X-A: found '7 or more'; expected what the task allows"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"url": ""}, "url: found nothing; expected a URL"),
        ({"url": "ftp://a/"}, "url: found 'ftp://a/'; expected http://"),
        ({"url": "http://a/#b"}, "without a fragment"),
        ({"url": "http://{data.host}/"}, "url: found a placeholder in the host"),
        ({"url": "http://a:{data.port}/"}, "url: found a placeholder in the host"),
        ({"url": "{data.scheme}://a/"}, "url: found '{data.scheme}://a/'"),
        ({"url": "http://u:p@a/"}, "url: found a user's name"),
        ({"url": "http://a:70000/"}, "url: found the host 'a:70000'"),
        ({"url": "http:///x"}, "url: found the host ''"),
        ({"url": "http://a/x y"}, "percent-encoded"),
        ({"url": "http://a/../y"}, "without . and .."),
        ({"method": "get"}, "method: found 'get'"),
        ({"method": "CONNECT"}, "method: found 'CONNECT'"),
        ({"headers": {"A B": "1"}}, "headers.A B: found no header's name"),
        ({"headers": {"A": "1\n2"}}, "headers.A: found characters that are not printable"),
        ({"headers": {"A": "1", "a": "2"}}, "headers.a: found the same name twice"),
        ({"headers": {"Content-Length": 1}}, "headers.Content-Length: found"),
        ({"body": "a", "form": {"b": "c"}}, "form: found it beside body; expected one of the two"),
        ({"json": {1, 2}}, "json: found not JSON"),
        ({"allow_path": "("}, "allow_path: found '(' "),
        ({"allow_path": ""}, "allow_path: found nothing; expected a regular expression"),
        ({"allow_headers": {"A": "["}}, "allow_headers.A: found '[' "),
        ({"allow_headers": {"A": ""}}, "allow_headers.A: found nothing"),
        ({"allow_headers": {"Host": "a"}}, "allow_headers.Host: found Host, which says"),
        ({"ok_status": ["2xx"]}, "ok_status: found '2xx'"),
        ({"ok_status": ["299-200"]}, "ok_status: found '299-200'"),
        ({"tls_ca_file": "/nowhere"}, "tls_ca_file: found /nowhere (No such file"),
        ({"tls_ca_file": __file__}, "tls_ca_file: found "),
        ({"unix_socket": "s"}, "unix_socket: found 's'; expected an absolute path"),
        ({"url": "https://a/", "unix_socket": "/s"}, "unix_socket: found it beside https"),
        ({"tls_verify": False}, "tls_verify: found an unknown key"),
    ],
)
def test_a_mistake_is_named_when_the_file_is_loaded(fields, expected):
    """Never by a request."""
    assert expected in mistakes(**fields)


def test_a_host_header_of_the_administrator_is_fine():
    """Virtual hosts behind one address."""
    assert mistakes(headers={"Host": "api.example"}) == ""
