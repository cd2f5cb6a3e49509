"""Servers that answer with something else, and caches that are spoilt or cannot be written."""

import errno
import os
from http.server import SimpleHTTPRequestHandler

import pytest
from data_helpers import Server, make_sample, sign_index, write_raw

from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.shard_writer import write_shards
from scone_pl.data.shards import ShardSet
from scone_pl.data.storage import StorageConfig
from scone_pl.errors import UserError

pytestmark = pytest.mark.slow

SAMPLES = [make_sample(i) for i in range(6)]


@pytest.fixture
def folder(tmp_path):
    write_shards(SAMPLES, tmp_path / "set", samples_per_shard=3, progress=False)
    return tmp_path / "set"


@pytest.fixture
def storage(tmp_path):
    return StorageConfig(cache_dir=str(tmp_path / "cache"), attempts=2, backoff_seconds=0.01, timeout_seconds=5)


class Answers(Server):
    """Serves a folder; `answers[path]` is a function that writes another answer to a request."""

    def __init__(self, folder, answers):
        super().__init__(folder)
        self.answers = answers
        inner = self.RequestHandlerClass.func

        class Handler(inner):
            def do_GET(self):  # noqa: N802
                answer = answers.get(self.path)
                if answer is None:
                    super().do_GET()
                else:
                    self.server.requests[self.path] += 1
                    answer(self)

        self.RequestHandlerClass = type(self.RequestHandlerClass)(Handler, **self.RequestHandlerClass.keywords)


def answer(content, status=200, **headers):
    def write(handler: SimpleHTTPRequestHandler):
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return write


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        pass


PAGE = b"<html><body>Please log in</body></html>"


@pytest.mark.parametrize(
    "wrong",
    [
        answer(PAGE),
        answer(b""),
        answer(b"half", **{"Content-Length": "4000"}),
        answer(b"", 302, Location="/elsewhere.html"),
        answer(b"", 302, Location="/00000.tar"),
        answer(PAGE, 404),
        answer(PAGE, 403),
    ],
    ids=["page", "empty", "cut off", "redirected to nothing", "redirected to itself", "404", "403"],
)
@pytest.mark.parametrize("file", ["manifest.json", "index.jsonl", "00000.tar"])
def test_wrong_answers_name_the_url_and_are_not_kept(file, wrong, folder, storage):
    with Answers(folder, {f"/{file}": wrong}) as server:
        if file.endswith(".tar"):
            shards = ShardSet(server.url, storage)
            with pytest.raises(BrokenSampleError) as error:
                shards.read(0)
            assert error.value.reason == "unreadable shard"
            assert shards.read(3) == SAMPLES[3]
        else:
            with pytest.raises(UserError) as error:
                ShardSet(server.url, storage)
        assert f"{server.url}/{file}" in str(error.value)
        assert "\n" not in str(error.value)
        server.answers.clear()
        assert list(ShardSet(server.url, storage)) == SAMPLES


def test_an_answer_without_end_is_cut_off(folder, storage):
    with Answers(folder, {"/00000.tar": endless}) as server:
        with pytest.raises(BrokenSampleError, match=r"00000\.tar: cannot be fetched .*received more than \d+ bytes"):
            ShardSet(server.url, storage).read(0)
        assert max((path.stat().st_size for path in storage.cache.rglob("*00000*")), default=0) < 1 << 20


def test_damage_of_an_index_names_its_url(folder, storage):
    (folder / "index.jsonl").write_text((folder / "index.jsonl").read_text().replace('"shard": 1', '"shard": 1.5'))
    sign_index(folder)
    with Server(folder) as server:
        shards = ShardSet(server.url, storage)
        with pytest.raises(UserError, match=rf"^{server.url}/index\.jsonl: line 4 is damaged"):
            list(shards.entries())


def test_a_redirected_set_is_read(folder, storage, tmp_path):
    with Server(folder) as there:
        answers = {f"/{p.name}": answer(b"", 302, Location=f"{there.url}/{p.name}") for p in folder.iterdir()}
        with Answers(tmp_path, answers) as server:
            assert list(ShardSet(server.url, storage)) == SAMPLES


@pytest.mark.parametrize("damage", ["emptied", "cut", "flipped"])
@pytest.mark.parametrize("name", ["index.jsonl", "00000.tar"])
def test_a_spoilt_copy_is_fetched_again(name, damage, folder, storage):
    with Server(folder) as server:
        list(ShardSet(server.url, storage))
        (copy,) = (path for path in storage.cache.rglob(f"*{name}") if not path.name.startswith("."))
        content = copy.read_bytes()
        flipped = content[:1500] + bytes([content[1500] ^ 4]) + content[1501:] if name.endswith("tar") else b"{" * 9
        copy.write_bytes({"emptied": b"", "cut": content[:700], "flipped": flipped}[damage])
        assert list(ShardSet(server.url, storage)) == SAMPLES
        assert copy.read_bytes() == content
        assert server.requests[f"/{name}"] == 2


def test_what_is_damaged_there_is_hashed_once_and_not_fetched_again(folder, storage, monkeypatch):
    """A set whose sums are right but one of whose samples is broken."""

    def spoil(key, members):
        return members[1:] if key in ("s0001", "s0002") else members

    raw = write_raw(folder.parent / "raw", SAMPLES, spoil)
    with Server(raw) as server:
        shards = ShardSet(server.url, storage)
        for i in (1, 2, 1):
            with pytest.raises(BrokenSampleError, match="lacks its JSON"):
                shards.read(i)
        assert server.requests["/00000.tar"] == 1


@pytest.mark.parametrize("blocked", ["file", "file/below", "/proc/cache"])
def test_a_cache_that_cannot_be_written_is_one_line(blocked, folder, tmp_path):
    (tmp_path / "file").write_text("")
    config = StorageConfig(cache_dir=str(tmp_path / blocked), attempts=1)
    with Server(folder) as server, pytest.raises(UserError, match="cache cannot be used") as error:
        ShardSet(server.url, config)
    assert "storage.cache_dir" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_full_cache_is_no_fault_of_the_server(folder, storage, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Server(folder) as server:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cache cannot be used \(No space left on device\); free some space"):
            ShardSet(server.url, storage)
        assert server.requests["/manifest.json"] == 1
    assert not list(storage.cache.rglob("*.part"))


def test_settings_that_are_no_numbers_are_refused():
    for name in ("attempts", "backoff_seconds", "timeout_seconds", "prefetch_packs", "cache_gigabytes"):
        with pytest.raises(UserError, match="storage"):
            StorageConfig(**{name: float("nan")})
