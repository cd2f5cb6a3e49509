"""A judge behind a real HTTP server on loopback, which can be slow, busy, broken or gone."""

import base64
import hashlib
import io
import json
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.steps import judge, plan_judgements


def kind_of(text):
    for kind, words in {
        "DIS": "Answer with one digit",
        "PF": "PROMPT FOLLOWING",
        "SC": "CONSISTENCY:",
        "PHY": "PLAUSIBILITY",
    }.items():
        if words in text:
            return kind
    return "?"


class Asked:
    """One request."""

    def __init__(self, body, key, number):
        self.body, self.key, self.number = body, key, number
        content = body["messages"][0]["content"]
        self.text = "\n".join(part["text"] for part in content if part["type"] == "text")
        self.images = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        self.kind = kind_of(self.text)
        self.digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        self.at = time.monotonic()

    @property
    def instruction(self):
        return re.findall(r"^(?:Instruction|Subject): (.*)$", self.text, re.MULTILINE)[-1]

    def size(self, number):
        """(width, height) of an image."""
        data = base64.b64decode(self.images[number].partition("base64,")[2])
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "JPEG"
            return image.size


def good_answer(asked):
    """Depends on what is asked alone."""
    number = int(asked.digest[:6], 16)
    if asked.kind == "DIS":
        return str(number % 2)
    return json.dumps({"score": number % 11, "reasoning": f"reason {number}"})


def completion(text, **more):
    usage = {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 0}}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"model": "fake-1", "choices": [choice], "usage": usage, **more}


class FakeJudge:
    """`script(asked, times)` says what happens to the `times`-th request (from 1) of the same content:

    None (a good answer), a text (as the answer), a dict or bytes (as the body), a tuple (status, body, headers), a
    number (seconds to wait before a good answer), `drop` or `half` (the connection ends without or within an answer),
    `hang` (no answer until the client gives up).
    """

    def __init__(self, script=lambda asked, times: None):
        self.script = script
        self.requests = []
        self.answered = Counter()
        """Whole good answers sent, by content."""
        self.in_flight = self.most_in_flight = 0
        self._times = Counter()
        self._lock = threading.Lock()
        this = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                this._answer(self)

            def log_message(self, *_):
                pass

        class Listening(ThreadingHTTPServer):
            request_queue_size = 64  # of the default 5, connections of more callers at once wait for a second

        self.server = Listening(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # connections of killed clients
        self.server.daemon_threads = True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def config(self, **settings):
        return JudgeConfig(**{"base_url": self.url, "model": "fake", "first_wait": 0.01, "concurrency": 8, **settings})

    def _answer(self, handler):
        assert handler.path == "/v1/chat/completions"
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            asked = Asked(body, handler.headers.get("Authorization"), len(self.requests))
            self.requests.append(asked)
            self._times[asked.digest] += 1
            times = self._times[asked.digest]
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            self._act(handler, asked, self.script(asked, times))
        except OSError:
            pass  # the client is gone
        finally:
            with self._lock:
                self.in_flight -= 1

    def _act(self, handler, asked, action):
        status, headers, good = 200, {}, False
        if isinstance(action, tuple):
            status, action, headers = action
        if isinstance(action, int | float):
            time.sleep(action)
            action = None
        if action == "hang":
            handler.connection.settimeout(60)
            handler.connection.recv(1)  # nothing, once the client has closed the connection
            handler.close_connection = True
            return
        if action == "drop":
            handler.close_connection = True
            handler.connection.close()
            return
        if action is None or action == "half":
            good, half = action is None, action == "half"
            action = completion(good_answer(asked))
        else:
            half = False
        if isinstance(action, str):
            action = completion(action)
        data = action if isinstance(action, bytes) else json.dumps(action).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2] if half else data)
        handler.wfile.flush()
        if half:
            handler.close_connection = True
            handler.connection.close()
        elif good:
            with self._lock:
                self.answered[asked.digest] += 1

    def settled(self):
        """The number of requests, once handlers of connections that are gone have counted theirs."""
        count = -1
        while count != len(self.requests):
            count = len(self.requests)
            time.sleep(0.5)
        return count


@contextmanager
def serving(script=lambda asked, times: None):
    fake = FakeJudge(script)
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        fake.server.server_close()


def http_date(seconds_from_now):
    return formatdate(time.time() + seconds_from_now, usegmt=True)


def write_pictures(items, place, seed=0):
    """A picture for every item, each its own."""
    for number, item in enumerate(items):
        file = place / item.image_name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((24, 24), Image.Resampling.NEAREST).save(file)


ERRORS = {
    "hang": "hang",
    "500": (500, b"oops", {}),
    "503 html": (503, b"<html>busy</html>", {}),
    "429": (429, {"error": {"code": "rate_limit_exceeded", "message": "slow down"}}, {"Retry-After": "0.3"}),
    "429 date": (429, {"error": {"message": "slow down"}}, {"Retry-After": http_date(1)}),
    "429 nonsense": (429, b"", {"Retry-After": "soon"}),
    "garbage": b"\x00\xff garbage",
    "wrong JSON": {"choices": []},
    "not an object": [1, 2],
    "nested": b"[" * 200_000,
    "error in 200": {"error": {"code": "server_error", "message": "x"}},
    "drop": "drop",
    "half": "half",
    "refusal": "I cannot help with that.",
    "out of range": '{"score": 12, "reasoning": "x"}',
    "empty": "",
}
"""What a judge's server can answer to a request that it answers well the second time."""
FAULTY_TIMEOUT = 3.0
"""Seconds until a caller gives up on `hang`; far more than a good answer takes on a busy machine."""


def one_fault_each(answer):
    """A script that answers each fault once, to the first request of a question or to its first in another scoring.

    Also the names of the faults so far.
    """
    met = []

    def script(asked, times):
        if times % 2 and len(met) < len(ERRORS):
            met.append(list(ERRORS)[len(met)])
            return ERRORS[met[-1]]
        return answer(asked)

    return script, met


def judged_with_faults(benchmark, items, evaluation, answer):
    """Records of two scorings by a server that has every fault once, and the number of requests."""
    script, met = one_fault_each(answer)
    with serving(script) as server:
        config = server.config(timeout=FAULTY_TIMEOUT)
        judgements = plan_judgements(evaluation, benchmark, items, config, 1, 2)
        records = judge(evaluation, benchmark, judgements, config, progress=False)
    assert len(met) == len(ERRORS)
    assert all(map(benchmark.is_complete, records))
    return records, len(server.requests)
