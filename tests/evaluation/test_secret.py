"""The judge's key in no message, however a service quotes it."""

import base64
import html
import json
import random
import urllib.parse

import pytest

from scone_pl.vlm.secret import MASK, Secret

KEY = "sk-proj-Ab3/dE+gH_jK&lMn~oPqRsTuVwXyZ0123456789abcdefXYZ"


def base64_within(text):
    return [base64.b64encode(f"{' ' * n}{text}".encode()).decode() for n in range(3)]


def pieces_of(key, length):
    return [key[i : i + length] for i in range(len(key) - length + 1)]


@pytest.mark.parametrize(
    "quoted",
    [
        KEY,
        KEY[:40],
        KEY[-12:],
        f"{KEY[:12]}...{KEY[-12:]}",
        urllib.parse.quote(KEY, safe=""),
        urllib.parse.quote(KEY, safe="").lower().replace(KEY.lower(), KEY),
        json.dumps(KEY).replace("/", "\\/"),
        "".join(f"\\u{ord(letter):04x}" for letter in KEY),
        "".join(f"&#{ord(letter)};" for letter in KEY),
        html.escape(KEY),
        urllib.parse.quote(json.dumps(KEY)),
        KEY.encode().hex(),
        KEY.encode().hex().upper(),
        base64.urlsafe_b64encode(KEY.encode()).decode(),
        *base64_within(KEY),
        *base64_within(f"Bearer {KEY}"),
        urllib.parse.quote(base64.b64encode(KEY.encode()).decode()),
    ],
    ids=lambda quoted: quoted[:30],
)
@pytest.mark.parametrize("before", [0, 3, 150, 190, 199])
def test_no_piece_of_the_key_is_shown_wherever_the_message_is_cut(quoted, before):
    shown = Secret(KEY).mask_error(f"{'.' * before}{quoted} is wrong", 200)
    assert len(shown) <= 200
    assert not any(piece in shown for piece in pieces_of(KEY, 8))
    for piece in (*pieces_of(KEY.encode().hex(), 16), *(p for text in base64_within(KEY) for p in pieces_of(text, 12))):
        assert piece.strip(".=") not in shown or piece in "ICAg"


def test_messages_without_the_key_stay_as_they_are():
    text = "model gpt-4.1 not found; see https://example.org/docs?page=12 (request 8f14e45fceea167a5a36dedd4bea2543)"
    assert Secret(KEY).mask_error(text, 200) == text


def test_short_keys_of_local_servers_are_no_secret():
    assert Secret("EMPTY").mask_error("the answer is EMPTY") == "the answer is EMPTY"
    assert Secret(None).mask("anything") == "anything"


def test_answers_lose_the_whole_key_only():
    assert Secret(KEY).mask(f"a {KEY} b {KEY[:10]}") == f"a {MASK} b {KEY[:10]}"


def test_whatever_is_said_no_piece_of_a_random_key_is_shown():
    draw = random.Random(7)
    letters = [chr(code) for code in range(33, 127)]
    encodings = [
        str,
        urllib.parse.quote,
        html.escape,
        json.dumps,
        lambda text: text.encode().hex(),
        lambda text: base64.b64encode(text.encode()).decode(),
    ]
    for _ in range(300):
        key = "".join(draw.choices(letters, k=draw.randint(16, 80)))
        text = draw.choice(encodings)(draw.choice(encodings)(f"{draw.choice(['', 'Bearer '])}{key}"))
        shown = Secret(key).mask_error("x" * draw.randint(0, 210) + " " + text, 200)
        for _ in range(2):
            assert not any(piece in shown for piece in pieces_of(key, 8))
            shown = html.unescape(urllib.parse.unquote(shown))
