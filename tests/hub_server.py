"""A Hugging Face hub on loopback: what huggingface_hub asks to list, read by ranges and upload, and refusals."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories by id, and what was asked of them."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        """`owner/name`, or `datasets/owner/name` -> file name -> content."""
        self.gated: set[str] = set()
        self.hidden: set[str] = set()
        """Files that are listed but not there."""
        self.broken_after: dict[str, int] = {}
        """File -> bytes after which the connection ends, once."""
        self.down = False
        self.served: dict[str, int] = {}
        """File -> bytes that were sent."""
        self.requests: list[tuple[str, str]] = []
        """Method and path."""
        self.uploaded: dict[str, bytes] = {}
        self.url = ""

    def add(self, repository: str, folder: Path) -> None:
        """All files of a folder as a repository."""
        self.repositories[repository] = {
            file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
        }


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub behind `hub.url`."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield hub
        server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.hub.requests.append(("POST", path))
        if path == "/api/repos/create":
            named = "/".join(json.loads(body)[key] for key in ("organization", "name"))
            return self._json({"url": f"{self.hub.url}/{named}", "name": named})
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return self._json({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if "/commit/" in path:
            repository = path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.hub.uploaded[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self._json({"commitOid": COMMIT, "commitUrl": f"{self.hub.url}/{repository}/commit/{COMMIT}"})
        return self._refuse(404, "EntryNotFound")

    def _serve(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append((self.command, path))
        if self.hub.down:
            return self._refuse(503, "")
        if match := re.fullmatch(r"/api/(models/|datasets/)([^/]+/[^/]+)(?:/revision/([^/]+)|/tree/([^/]+))?", path):
            name = ("datasets/" if match[1] == "datasets/" else "") + match[2]
            return self._listing(name, match[3] or match[4] or "main", tree=match[4] is not None)
        if match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(match[1], match[2], match[3])
        return self._refuse(404, "EntryNotFound")

    def _known(self, repository: str, revision: str) -> bool:
        if repository not in self.hub.repositories:
            self._refuse(401, "RepoNotFound")
        elif revision not in ("main", "v1", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def _listing(self, repository: str, revision: str, *, tree: bool) -> None:
        if not self._known(repository, revision):
            return
        files = self.hub.repositories[repository]
        if tree:
            entries = [{"type": "file", "path": n, "size": len(c), "oid": _etag(c)} for n, c in files.items()]
            return self._json(entries)
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": _etag(content),
                "lfs": {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 100},
            }
            for name, content in files.items()
        ]
        self._json(
            {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        )

    def _file(self, repository: str, revision: str, name: str) -> None:
        if not self._known(repository, revision):
            return None
        if repository in self.hub.gated and "Authorization" not in self.headers:
            return self._refuse(401, "GatedRepo")
        content = self.hub.repositories[repository].get(name)
        if content is None or name in self.hub.hidden:
            return self._refuse(404, "EntryNotFound")
        start, stop = 0, len(content)
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(match[1]), min(len(content), int(match[2]) + 1 if match[2] else len(content))
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        body = content[start:stop]
        limit = self.hub.broken_after.pop(name, None)
        sent = body if limit is None else body[:limit]
        self.wfile.write(sent)
        self.hub.served[name] = self.hub.served.get(name, 0) + len(sent)
        if limit is not None:
            self.wfile.flush()
            self.close_connection = True
        return None

    def _json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
