"""Images from URLs, against a server on loopback: read, limited, and refused in one line."""

from __future__ import annotations

import base64
import http.server
import threading

import numpy as np
import pytest
from pipeline_helpers import pixels, png_of

from scone_pl.errors import UserError
from scone_pl.sampling import urls
from scone_pl.sampling.images import load_rgb
from scone_pl.sampling.urls import is_url, read_url

PNG = png_of(pixels())


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/moved":
            return self._answer(302, Location="/cat.png")
        if path == "/to_ftp":
            return self._answer(302, Location="ftp://127.0.0.1/cat.png")
        if path == "/cat.png":
            return self._answer(200, PNG, Content_Length=str(len(PNG)))
        if path == "/short":
            return self._answer(200, PNG[:40], Content_Length=str(len(PNG)))
        if path == "/large":
            return self._answer(200, Content_Length=str(10**12))
        if path == "/endless":
            self._answer(200)
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                return None
        if path == "/text":
            return self._answer(200, b"<html>no image</html>")
        return self._answer(404)

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_images_are_read(server):
    data = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    for url in (f"{server}/cat.png", f"{server}/moved", f"{server}/cat.png?signature=1", data):
        assert np.array_equal(np.asarray(load_rgb(url, urls=True)), pixels())


def test_only_where_they_are_allowed(server):
    with pytest.raises(UserError, match=r"image: http://127.*URLs are not read here"):
        load_rgb(f"{server}/cat.png")


REFUSED = {
    "404": "/none",
    "which is neither http nor https": "/to_ftp",
    "ended after 40 of": "/short",
    "1000000000000 bytes are too many": "/large",
    "more than 1000000 bytes": "/endless",
    "unsupported format": "/text",
    "not from ftp": "ftp://localhost/cat.png",
    "not from file": "file:///etc/passwd",
    "cannot be reached": "http://127.0.0.1:1/cat.png",
    "cannot be re": "http://[::1/cat.png",
    "it has the form": "data:image/png",
    "damaged base64": "data:image/png;base64,####",
    "too many bytes": f"data:image/png;base64,{'A' * 3_000_000}",
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_urls_end_in_one_line(message, server, monkeypatch):
    monkeypatch.setattr(urls, "MAX_BYTES", 10**6)
    monkeypatch.setattr(urls.read_url, "__kwdefaults__", {"max_bytes": 10**6})
    path = REFUSED[message]
    with pytest.raises(UserError, match=message) as error:
        load_rgb(f"{server}{path}" if path[0] == "/" else path, urls=True)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_messages_hide_credentials_and_signatures():
    with pytest.raises(UserError) as error:
        read_url("http://user:secret@127.0.0.1:1/cat.png?signature=secret")
    assert "secret" not in str(error.value)


def test_paths_are_no_urls():
    assert not any(is_url(path) for path in ("cat.png", "/a/cat.png", "C:/cat.png", "a:b.png", "", "a//b.png", "data"))
