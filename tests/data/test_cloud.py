"""Data sets behind s3:// and hf:// URLs: a real S3 service on loopback (where moto is installed), no network at all."""

import functools
import importlib
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from data_helpers import make_sample

from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.shards import ShardSet
from scone_pl.data.storage import StorageConfig
from scone_pl.errors import UserError


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to `upstream`, unless `fail(path, count)` says otherwise."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, upstream, fail, requests):
        self.upstream, self.fail, self.requests = upstream, fail, requests
        super().__init__(*args)

    def do_GET(self):
        self.requests[self.command, self.path] += 1
        if self.fail(self.path, self.requests[self.command, self.path]):
            return self.answer(500, {}, b"")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
        headers = {name: value for name, value in self.headers.items() if name not in ("Host", "Connection")}
        request = urllib.request.Request(self.upstream + self.path, body, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return self.answer(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            return self.answer(error.code, error.headers, error.read())

    do_HEAD = do_GET  # noqa: N815 (the library's name)

    def answer(self, status, headers, body):
        self.send_response(status)
        length = headers.get("Content-Length", len(body)) if self.command == "HEAD" else len(body)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def bucket(shard_folder, monkeypatch):
    """Starts `serve(fail)`: the synthetic shard set in s3://data/set; the requests that come are counted."""
    pytest.importorskip("s3fs")
    moto_server = pytest.importorskip("moto.server")
    import boto3
    import s3fs

    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    moto = moto_server.ThreadedMotoServer(port=0)
    moto.start()
    upstream = "http://{}:{}".format(*moto.get_host_and_port())
    client = boto3.client("s3", endpoint_url=upstream)
    client.create_bucket(Bucket="data")
    for file in shard_folder.iterdir():
        client.upload_file(str(file), "data", f"set/{file.name}")
    requests, proxies = Counter(), []

    def serve(fail=lambda path, count: False):
        handler = functools.partial(Proxy, upstream=upstream, fail=fail, requests=requests)
        proxies.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=proxies[-1].serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*proxies[-1].server_address))
        s3fs.S3FileSystem.clear_instance_cache()
        return requests

    yield serve
    for proxy in proxies:
        proxy.shutdown()
        proxy.server_close()
    moto.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def storage(tmp_path):
    return StorageConfig(cache_dir=str(tmp_path / "cache"), attempts=3, backoff_seconds=0.01, timeout_seconds=5)


def test_s3_recovers_and_is_fetched_once(bucket, shard_folder, storage):
    requests = bucket(lambda path, count: count == 1)
    for _ in range(2):
        assert list(ShardSet("s3://data/set", storage)) == list(ShardSet(shard_folder))
    read = {path: count for (verb, path), count in requests.items() if verb == "GET" and path.endswith(".tar")}
    assert read == {f"/data/set/{i:05d}.tar": 2 for i in range(5)}  # once in vain


def test_s3_that_stays_broken_is_a_counted_skip(bucket, storage):
    bucket(lambda path, count: path.endswith("00001.tar"))
    shards = ShardSet("s3://data/set", storage)
    with pytest.raises(BrokenSampleError, match=r"s3://data/set/00001\.tar: cannot be fetched") as error:
        shards.read(13)
    assert error.value.reason == "unreadable shard"
    assert shards.read(12) == make_sample(12)


@pytest.mark.parametrize(("url", "said"), [("s3://data/none", "FileNotFound"), ("s3://nobody/set", "FileNotFound")])
def test_nothing_there_is_one_line(bucket, storage, url, said):
    bucket()
    with pytest.raises(UserError, match=rf"{url}/manifest\.json: cannot be fetched \({said}") as error:
        ShardSet(url, storage)
    assert "\n" not in str(error.value)


def test_s3_without_credentials_is_one_line(bucket, storage, monkeypatch):
    bucket()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", storage.cache_dir)
    with pytest.raises(UserError, match=r"manifest\.json: cannot be fetched .*[Cc]redentials") as error:
        ShardSet("s3://data/set", storage)
    assert "\n" not in str(error.value)


def test_hugging_face_without_network_is_one_line(storage, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"hf://datasets/me/set/manifest\.json: cannot be fetched \(Offline") as error:
        ShardSet("hf://datasets/me/set", storage)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("url", "package"), [("s3://data/set", "s3fs"), ("hf://datasets/me/set", "huggingface_hub")])
def test_a_missing_package_is_named(storage, monkeypatch, url, package):
    loaded = importlib.import_module("fsspec.registry")._registry
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(loaded, url.partition(":")[0], raising=False)
    with pytest.raises(UserError, match=rf"{package}.*; pip install {package}, or copy the data set here") as error:
        ShardSet(url, storage)
    assert "\n" not in str(error.value)
