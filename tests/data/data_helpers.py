"""Paths and synthetic samples shared by the tests of the data room."""

import dataclasses
import functools
import hashlib
import io
import json
import tarfile
import threading
import time
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from scone_pl.data.members import checksum, sample_json
from scone_pl.data.sample import Candidate, Sample
from scone_pl.data.shard_writer import shard_info, write_manifest, write_shards
from scone_pl.data.shards import ShardSet

ROOT = Path(__file__).parents[2]
TINY = ROOT / "data_shards" / "tiny"
GOLDEN = ROOT / "tests" / "golden" / "parity"


def encode(width, height, seed=0, format="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def make_sample(number, references=None):
    """Sizes and instruction lengths vary with `number`."""
    references = number % 3 if references is None else references
    half = (Candidate(box=(0.0, 0.0, 0.5, 1.0), is_target=True), Candidate(box=(0.5, 0.0, 1.0, 1.0), is_target=False))
    return Sample(
        key=f"s{number:04d}",
        references=tuple(encode(16 + 8 * (number % 4), 16 + 8 * i, number) for i in range(references)),
        instruction="x" * (1 + number % 7),
        target=encode(16 + 8 * (number % 3), 24, number + 1000),
        kind="multi" if number % 2 else "single",
        candidates=tuple(half for _ in range(references)) if number % 2 else None,
        metadata={"number": number},
    )


def members_of(sample):
    """A good sample's tar members, to be spoiled."""
    files = [(f"{sample.key}.json", sample_json(sample))]
    files += [(f"{sample.key}.ref{i}.png", data) for i, data in enumerate(sample.references)]
    return [*files, (f"{sample.key}.target.png", sample.target)]


def write_raw(folder, samples, spoil, samples_per_shard=1000):
    """A shard set as a careless tool would write it: `spoil(key, members)` changes what is in the tar."""
    write_shards(samples, folder, samples_per_shard=samples_per_shard, progress=False)
    shards = ShardSet(folder)
    infos, lines = [], []
    for number, info in enumerate(shards.manifest.shards):
        tar = io.BytesIO()
        for entry in (e for e in shards.index if e.shard == number):
            sample = next(s for s in samples if s.key == entry.key)
            start = tar.tell()
            one = io.BytesIO()
            with tarfile.open(fileobj=one, mode="w") as file:
                members = spoil(entry.key, members_of(sample))
                for name, content in members:
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
                end = file.offset
            tar.write(one.getvalue()[:end])
            lines.append(dataclasses.replace(entry, offset=start, length=end, crc32=checksum(members)))
        tar.write(bytes(1024))
        (folder / info.file).write_bytes(tar.getvalue())
        infos.append(shard_info(folder / info.file, info.samples))
    (folder / "index.jsonl").write_text("".join(entry.to_json() + "\n" for entry in lines))
    write_manifest(folder, shards.manifest.kinds, infos)
    return folder


def sign_index(folder):
    """Brings the index's checksum in the manifest up to date."""
    file = folder / "manifest.json"
    digest = hashlib.sha256((folder / "index.jsonl").read_bytes()).hexdigest()
    file.write_text(json.dumps({**json.loads(file.read_text()), "index_sha256": digest}))


class Server(ThreadingHTTPServer):
    """Serves a folder on loopback; `fail(path, count)` says with which status a request for a file fails, if any."""

    def __init__(self, folder, fail=lambda path, count: None, delay=0.0):
        self.requests = Counter()
        self.fail, self.delay = fail, delay
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.requests[self.path] += 1
        time.sleep(self.server.delay if self.path.endswith(".tar") else 0)
        status = self.server.fail(self.path, self.server.requests[self.path])
        if status is None:
            super().do_GET()
        else:
            self.send_error(status)

    def log_message(self, *_):
        pass
