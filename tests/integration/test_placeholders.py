"""Values of strangers as words of a real program: exactly what they are, or refused."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ngcp_task_agent.errors import BrokerError, MessageError
from ngcp_task_agent.messages import decode_request

from ..helpers import request
from . import loops
from .jobs import Kept, command_broker, job

# What a shell, a formatter, a terminal, a parser of options or of our own placeholders
# takes for something else than itself.
SPECIAL = [
    "", " ", "  ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\x1b[2J", "\x7f", "\x85", "\0", "\a",
    "\b", "$()", "$(id)", "`id`", "${HOME}", "$HOME", "$'\\n'", "$((1+1))", "<(id)", "~",
    "~root", "*", "?", "[a-z]", "{a,b}", "!", "!!", "#", "%", "%s", "%n%n", "%%", "%1$s", "\\",
    "\\\\", "\\n", "\\0", "'", "''", '"', '""', "'\"'", "a'b", 'a"b', ";", ";id", "|", "||id",
    "&", "&&id", ">", ">/x", "<", "2>&1", "(", ")", "a b", " a", "a ", "a\tb", "a\nb", "a\n",
    "=", "a=b", ",", ":", "/", "..", "../../etc/passwd", "/dev/stdin", "@file", "{", "}", "{}",
    "{{", "}}", "{0}", "{host}", "{data.host}", "{{data.host}}", "{data.host", "{data.x}",
    "{data.}", "${data.host}", "-", "--", "-rf", "--help", "-\n", "--host=x", "-1", "-\u202e",
    "\u2010rf", "\u2212rf", "\ufe63rf", "\uff0drf", "\u202e", "\u202eabc\u202c", "\u2066",
    "\u2069", "\u200e", "\u200f", "\u061c", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff",
    "\u00ad", "\u00a0", "\u3000", "\u2028", "\u2029", "\u0085x", "\u0301", "e\u0301", "\u00e9",
    "\u0344", "a" + "\u0300" * 500, "\u1100\u1161", "\uac00", "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\ufe0f", "\ufffd",
    "\ufffe", "\uffff", "\U0010ffff", "\ue000", "\x01", "\x1f", "\u05d0\u05d1", "\u0627",
    "\ud800", "\udfff", "a\udc80b", "\udcff", "\ude00\ud83d", "null", "true", "0", "1e999",
    "NaN", "'; DROP TABLE x; --", "<script>", "&amp;", "%00", "%0a", "\\u0000", "\\x00",
    "\\ud800", "a\0b", "x" * 140_000, "x" * 100_000, "\u20ac" * 33_000, " " * 10_000,
    "\n" * 10_000, "$(" * 5_000, "{data.host}" * 500,
]  # fmt: skip
HOSTILE = SPECIAL + [f"a{one}b" for one in SPECIAL if len(one) < 20]
LONGEST = 128 * 1024 - 20  # bytes; the kernel's limit of one word, less what stands around it
# printf(1) writes each of its further arguments, and a NUL behind it.
PROGRAM = {"run": "/usr/bin/printf"}
WORDS = ["%s\\0", "{data.host}", "--host={data.host}:5060", "<{data.host}>", "end"]


def expected(value):
    words = [value, f"--host={value}:5060", f"<{value}>", "end"]
    return b"".join(word.encode() + b"\0" for word in words)


def refused(value, allow_options):
    half = any("\ud800" <= character <= "\udfff" for character in value)
    if half or "\0" in value or len(value.encode()) > LONGEST:
        return True
    return value.startswith("-") and not allow_options


async def argv(payload, **options):
    """What the program got for the request *payload*, or why it got nothing."""
    output = Kept()
    try:
        asked = decode_request(payload)
        await command_broker(**PROGRAM, args=WORDS, **options).run(
            job(data=asked.data, arguments=asked.arguments()), output
        )
    except (MessageError, BrokerError) as exc:
        assert output.text == b""
        return str(exc)
    return output.text


@pytest.mark.parametrize("allow_options", [False, True])
@pytest.mark.parametrize("form", [lambda data: data, json.dumps], ids=["object", "text"])
async def test_the_program_gets_exactly_the_value_or_the_request_is_refused(form, allow_options):
    """One word each time, wherever it stands; more than 200 values that mean something
    to somebody."""
    assert len(HOSTILE) > 200

    for value in HOSTILE:
        got = await argv(request(data=form({"host": value})), allow_options=allow_options)

        if refused(value, allow_options):
            assert isinstance(got, str), ascii(value)
        else:
            assert got == expected(value), ascii(value[:100])


@pytest.mark.root
async def test_as_another_user_it_is_the_same():
    """The words go through setpriv(1)."""
    for value in SPECIAL[::4]:
        got = await argv(request(data={"host": value}), as_user="nobody", allow_options=True)

        assert isinstance(got, str) if refused(value, True) else got == expected(value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(st.characters(codec=None)), max_size=20), st.booleans())
def test_any_values_are_words_of_their_own(values, allow_options):
    """As many words as placeholders, and none of them has any say about the next."""
    arguments = {f"w{number}": value for number, value in enumerate(values)}
    words = ["%s\\0", *(f"{{data.{name}}}" for name in arguments), "end"]
    broker = command_broker(**PROGRAM, args=words, allow_options=allow_options)
    output = Kept()

    try:
        loops.run(broker.run(job(arguments=arguments), output), 20, loops.OURS)
    except BrokerError:
        assert any(refused(value, allow_options) for value in values)
    else:
        assert not any(refused(value, allow_options) for value in values)
        assert output.text == b"".join(f"{word}\0".encode() for word in [*values, "end"])


@pytest.mark.parametrize("value", ["-rf", "--", -5, "-\u202e\n"])
async def test_a_value_like_an_option_is_refused_with_the_way_out(value):
    """Numbers are words, too."""
    text = await argv(request(data={"host": value}))

    assert text.startswith(f"data.host: found {str(value)!r}, which starts with '-'; expected ")
    assert text.endswith("(allow_options)")
    assert text.isprintable()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (None, "nothing"), ({}, "nothing"), ({"host": None}, "nothing"), ("no JSON", "nothing"),
        ({"host": ["a"]}, "an array"), ({"host": {"a": 1}}, "an object"),
        ([{"host": 1}], "nothing"),
    ],
)  # fmt: skip
async def test_what_is_no_word_starts_nothing(data, found):
    """Rather than run it with one word less."""
    text = await argv(request(data=data))

    assert text == f"data.host: found {found}; expected a text or a number"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("-c 1 {data.host}", ["-c", "1", "a 'b"]),
        ("'{data.host} x' \"{data.host}\"", ["a 'b x", "a 'b"]),
        ("--host={data.host} {{data.host}}", ["--host=a 'b", "{data.host}"]),
    ],
)
async def test_a_text_is_split_before_the_values_are_in_it(args, words):
    """So that no value is split, and none holds a quote."""
    output = Kept()

    broker = command_broker(**PROGRAM, args=f"'%s\\0' {args}")
    await broker.run(job(arguments={"host": "a 'b"}), output)

    assert output.text.decode().split("\0")[:-1] == words


async def test_extra_args_follow_the_words_with_values():
    """Where dispatch leaves them to a broker."""
    output = Kept()

    broker = command_broker(**PROGRAM, args=["%s\\0", "{data.host}"])
    await broker.run(job(arguments={"host": "a b", "extra_args": "-x {data.host}"}), output)

    assert output.text == b"a b\0-x\0{data.host}\0"


def test_the_locale_of_the_daemon_has_no_say():
    """A word is UTF-8, also where the locale has no such character."""
    code = (
        "import asyncio, sys\n"
        "from tests.integration.jobs import Kept, command_broker, job\n"
        "assert sys.getfilesystemencoding() == 'ascii', sys.getfilesystemencoding()\n"
        "output = Kept()\n"
        "broker = command_broker(run='/usr/bin/printf', args=['%s', '{data.host}'])\n"
        "word = {'host': chr(0xe4), 'extra_args': chr(0x20ac)}\n"
        "asyncio.run(broker.run(job(arguments=word), output))\n"
        "sys.stdout.buffer.write(output.text)\n"
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=20)

    assert said.stderr == b""
    assert said.stdout.decode() == "\u00e4\u20ac"
