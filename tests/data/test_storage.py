"""Data sets behind a URL, on a real HTTP server."""

import contextlib
import copy
import dataclasses
import errno
import itertools
import multiprocessing
import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_helpers import TINY, Server, make_sample
from torch.utils.data import DataLoader

from scone_pl.data.datamodule import PackedDataModule
from scone_pl.data.inputs import ShardInput
from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.shard_writer import write_shards
from scone_pl.data.shards import ShardSet
from scone_pl.data.sources import Mixture, Source
from scone_pl.data.storage import RemoteFolder, StorageConfig
from scone_pl.data.stream import Cursor, PackMaker, PackStream
from scone_pl.data.verify import verify_shards
from scone_pl.errors import UserError


@pytest.fixture
def storage(tmp_path):
    return StorageConfig(cache_dir=str(tmp_path / "cache"), attempts=3, backoff_seconds=0.01, timeout_seconds=5)


def stream_of(url, sequence_format, tokenizer, packing, storage, window=None):
    mixture = Mixture([Source(url)], sequence_format, tokenizer, packing, storage, window)
    return PackStream(PackMaker(mixture, sequence_format, tokenizer, packing, seed=3), Cursor())


def test_remote_equals_local_and_is_fetched_once(shard_folder, storage):
    with Server(shard_folder) as server:
        for _ in range(2):
            shards = ShardSet(server.url, storage)
            assert list(shards) == list(ShardSet(shard_folder))
        tars = {path: count for path, count in server.requests.items() if path.endswith(".tar")}
    assert tars == {f"/{i:05d}.tar": 1 for i in range(5)}
    assert not list(storage.cache.rglob("*.part"))


def test_memory_file_system(shard_folder, storage):
    import fsspec

    fsspec.filesystem("memory").put(str(shard_folder), "/set", recursive=True)
    assert ShardSet("memory://set", storage).read(3) == make_sample(3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_recovers_leaves_no_trace(shard_folder, sequence_format, tokenizer, packing, storage, workers):
    expected = [
        b.sequence.keys
        for b in itertools.islice(stream_of(str(shard_folder), sequence_format, tokenizer, packing, None), 9)
    ]
    with Server(shard_folder, lambda path, count: 500 if count == 1 else None) as server:
        loader = DataLoader(
            stream_of(server.url, sequence_format, tokenizer, packing, storage), None, num_workers=workers
        )
        batches = list(itertools.islice(loader, 9))
    assert [batch.sequence.keys for batch in batches] == expected
    assert not any(batch.skipped for batch in batches)


def test_a_shard_that_cannot_be_had_is_skipped_and_not_asked_for_again_at_once(shard_folder, storage):
    with Server(shard_folder, lambda path, count: 500 if path == "/00001.tar" else None) as server:
        shards = ShardSet(server.url, storage)
        for i in (13, 14):
            with pytest.raises(BrokenSampleError, match=r"00001\.tar.*500") as error:
                shards.read(i)
            assert error.value.reason == "unreadable shard"
        assert shards.read(12) == make_sample(12)
        assert server.requests["/00001.tar"] == storage.attempts


def test_wrong_bytes_are_never_cached(shard_folder, storage, tmp_path):
    folder = tmp_path / "copy"
    write_shards((make_sample(i) for i in range(4)), folder, progress=False)
    tar = (folder / "00000.tar").read_bytes()
    (folder / "00000.tar").write_bytes(tar[:-100])
    with Server(folder) as server:
        shards = ShardSet(server.url, storage)
        with pytest.raises(BrokenSampleError, match="checksum differs"):
            shards.read(0)
    assert not list(storage.cache.rglob("*.tar"))


def test_no_data_set_there_is_one_line(tmp_path, storage):
    with Server(tmp_path) as server, pytest.raises(UserError, match=r"manifest\.json: cannot be fetched") as error:
        ShardSet(server.url, storage)
    assert "\n" not in str(error.value)
    assert sum(server.requests.values()) == 1  # a 404 is an answer
    with pytest.raises(UserError, match=r"nosuch://bucket.*; copy the data set here") as error:
        ShardSet("nosuch://bucket/set", storage)
    assert "\n" not in str(error.value)


def run_together(target, *arguments):
    """Runs `target` with each of the arguments in a process of its own; their exit codes."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=target, args=given) for given in arguments]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _read_all(url, storage):
    assert len(list(ShardSet(url, storage))) == 60


def test_processes_share_a_cache(shard_folder, storage):
    with Server(shard_folder, delay=0.05) as server:
        assert run_together(_read_all, *[(server.url, storage)] * 3) == [0, 0, 0]
    assert all(count == 1 for path, count in server.requests.items() if path.endswith(".tar"))


def test_cache_limit(shard_folder, storage):
    sizes = [path.stat().st_size for path in sorted(shard_folder.glob("*.tar"))]
    limited = StorageConfig(cache_dir=storage.cache_dir, cache_gigabytes=2.5 * max(sizes) / 1e9)
    with Server(shard_folder) as server:
        shards = ShardSet(server.url, limited)
        assert list(shards) == list(ShardSet(shard_folder))
        assert sum(path.stat().st_size for path in limited.cache.rglob("*.tar")) <= 2.5 * max(sizes)
        assert shards.read(0) == make_sample(0)  # fetched again


def test_what_else_lies_in_the_cache_folder_is_left_alone(shard_folder, storage):
    own = Path(storage.cache_dir) / "my_data" / "00000.tar"
    own.parent.mkdir(parents=True)
    own.write_bytes(bytes(10_000_000))
    os.utime(own, (0, 0))
    with Server(shard_folder) as server:
        shards = ShardSet(server.url, dataclasses.replace(storage, cache_gigabytes=1e-9))
        assert [shards.read(i).key for i in range(3)]
    assert own.stat().st_size == 10_000_000


def test_passwords_in_urls_are_not_written(storage):
    url = "http://me:secret@127.0.0.1:9/set"
    with pytest.raises(UserError, match="manifest") as error:
        ShardSet(url, dataclasses.replace(storage, attempts=1))
    assert "secret" not in str(error.value)
    folder = copy.copy(RemoteFolder(url, storage))  # as a worker gets it
    assert folder._url == url
    assert folder.name == "http://127.0.0.1:9/set"


def test_a_cache_too_small_is_said_at_the_start(shard_folder, sequence_format, tokenizer, packing, storage):
    sizes = sorted((path.stat().st_size for path in shard_folder.glob("*.tar")), reverse=True)

    def check(gigabytes, window, consumers=1, path=None):
        limited = dataclasses.replace(storage, cache_gigabytes=gigabytes, prefetch_packs=0)
        Mixture([Source(path or url)], sequence_format, tokenizer, packing, limited, window).check_cache(consumers)

    with Server(shard_folder) as server:
        url = server.url
        with pytest.raises(UserError, match=r"at least .* or set data\.shuffle_window") as error:
            check(0.99 * sum(sizes) / 1e9, None)
        assert "\n" not in str(error.value)
        smallest = float(re.search(r"at least (\S+)", str(error.value))[1])
        assert sum(sizes) / 1e9 <= smallest < 1.02 * sum(sizes) / 1e9
        check(smallest, None)
        with pytest.raises(UserError, match="5 remote shards"):  # 8 consumers run ahead over all five
            check(0.99 * sum(sizes) / 1e9, 1, consumers=8)
        check(0.99 * sum(sizes) / 1e9, None, path=str(shard_folder))  # nothing of a local set is cached
        tiny = dataclasses.replace(storage, cache_gigabytes=1e-6)
        data = PackedDataModule(train=[Source(url)], packing=packing, storage=tiny)
        data.connect(sequence_format, tokenizer)
        with pytest.raises(UserError, match="cache_gigabytes is 1e-06, but 5 remote shards are in use"):
            data.train_dataloader()


def test_shards_are_read_although_others_evict_them_at_once(shard_folder, storage, monkeypatch):
    old = TINY / "single"  # without checksums of samples: that of the shard is verified instead
    replace = os.replace

    def replace_and_evict(part, copy):
        replace(part, copy)
        if str(copy).endswith(".tar"):
            os.unlink(copy)

    monkeypatch.setattr(os, "replace", replace_and_evict)
    monkeypatch.setenv("SCONE_CACHE", storage.cache_dir)
    samples = [make_sample(i) for i in range(60)]
    with Server(shard_folder) as server:
        shards = ShardSet(server.url, storage)
        assert [shards.read(i) for i in range(60)] == samples
        assert not verify_shards(server.url, progress=False).faults.total
    with Server(old) as server:
        read = ShardInput(server.url, storage).read(0, 8)
        assert [sample for _, sample in read] == list(ShardSet(old))
    assert not list(storage.cache.rglob("*.tar"))


def test_an_open_shard_stays_readable(shard_folder, storage):
    content = (shard_folder / "00000.tar").read_bytes()
    with Server(shard_folder) as server:
        shards = ShardSet(server.url, dataclasses.replace(storage, cache_gigabytes=1e-9))
        with shards.open(0) as stream:
            shards.open(1).close()
            assert [path.name[17:] for path in storage.cache.glob("*/*.tar")] == ["00001.tar"]
            assert stream.read() == content


def test_a_damaged_copy_that_another_process_replaced_is_read_again(shard_folder, storage, monkeypatch):
    damaged = BrokenSampleError("wrong checksum", "of the copy before")
    with Server(shard_folder) as server:
        shards = ShardSet(server.url, storage)
        reads = [damaged, make_sample(0)]

        def read(i):
            if isinstance(outcome := reads.pop(0), BrokenSampleError):
                raise outcome
            return outcome

        shards.open(0).close()
        monkeypatch.setattr(shards, "_read", read)
        assert shards.read(0) == make_sample(0)
        reads[:] = [damaged, make_sample(0)]
        with pytest.raises(BrokenSampleError):  # the copy is known to be intact, so the sample itself is damaged
            shards.read(0)


def test_a_copy_that_another_machine_removed_is_fetched_again(shard_folder, storage, monkeypatch):
    """On a network file system, where a removed file that is open is stale."""

    def stale(descriptor):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with Server(shard_folder) as server:
        shards = ShardSet(server.url, storage)
        expected = shards.read(0)
        for path in storage.cache.rglob("*.tar"):
            os.utime(path, (0, 0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "utime", stale)
            assert shards.read(0) == expected
        assert server.requests["/00000.tar"] == 2


@pytest.mark.parametrize("odd", ["folder", "pipe"])
def test_a_copy_that_is_no_file_is_replaced_or_skipped(odd, shard_folder, storage):
    with Server(shard_folder) as server:
        shards = ShardSet(server.url, dataclasses.replace(storage, attempts=1))
        shards.open(0).close()
        (copy,) = storage.cache.rglob("*.tar")
        copy.unlink()
        copy.mkdir() if odd == "folder" else os.mkfifo(copy)
        if odd == "pipe":
            assert shards.read(0).key == shards.index[0].key
        else:
            with pytest.raises(BrokenSampleError, match="cannot be fetched"):
                shards.read(0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_shards_that_are_no_files_leave_none_open(shard_folder, tmp_path):
    odd = shutil.copytree(shard_folder, tmp_path / "odd")
    (odd / "00000.tar").unlink()
    (odd / "00000.tar").mkdir()
    shards = ShardSet(odd, check_files=False)
    for _ in range(3):
        with pytest.raises(BrokenSampleError, match=r"00000\.tar: not a regular file"):
            shards.read(0)
    opened = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed since, by another thread
            opened.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    assert str(odd / "00000.tar") not in opened


def test_processes_in_too_small_a_cache_still_read_the_right_samples(shard_folder, storage):
    tiny = dataclasses.replace(storage, cache_gigabytes=1e-9)  # a shard that comes drives the others out
    with Server(shard_folder) as server:
        assert run_together(_read_scattered, *[(server.url, tiny, seed) for seed in range(3)]) == [0, 0, 0]


def _read_scattered(url, storage, seed):
    shards = ShardSet(url, storage)
    for i in np.random.default_rng(seed).permutation(60).tolist():
        assert shards.read(i) == make_sample(i)


def test_shuffle_window(shard_folder, sequence_format, tokenizer, packing):
    mixture = Mixture([Source(str(shard_folder), 1.5)], sequence_format, tokenizer, packing, shuffle_window=2)
    whole = Mixture([Source(str(shard_folder), 1.5)], sequence_format, tokenizer, packing)
    orders = [mixture.order(3, epoch) for epoch in range(2)]
    assert orders[0] != orders[1]
    for epoch, order in enumerate(orders):
        assert sorted(order, key=str) == sorted(whole.order(3, epoch), key=str)
        shards = [(mixture.shard_of(draw), draw.copy) for draw in order]
        starts = [i for i, unit in enumerate(shards) if unit not in shards[:i]]
        ends = [len(shards) - 1 - shards[::-1].index(shards[i]) for i in starts]
        for k in range(2, len(starts), 2):  # a window begins only after the one before has ended
            assert max(ends[k - 2 : k]) < starts[k]
    assert mixture.fingerprint(3) != whole.fingerprint(3)
    with pytest.raises(UserError, match="shuffle_window is 0"):
        PackedDataModule(train=[Source(str(shard_folder))], shuffle_window=0)


def test_shards_of_upcoming_packs_are_fetched_while_a_step_runs(
    shard_folder, sequence_format, tokenizer, packing, tmp_path
):
    def shards_after(packs, prefetch, wait_for=frozenset()):
        """Requested by the time that `packs` are read and, in the background, `wait_for`."""
        storage = StorageConfig(cache_dir=str(tmp_path / f"{packs}-{prefetch}"), prefetch_packs=prefetch)
        with Server(shard_folder) as server:
            stream = iter(stream_of(server.url, sequence_format, tokenizer, packing, storage, window=1))
            for _ in range(packs):
                next(stream)
            deadline = time.monotonic() + 60
            while not wait_for <= server.requests.keys() and time.monotonic() < deadline:
                time.sleep(0.01)
            return {path for path in server.requests if path.endswith(".tar")}

    first, needed = shards_after(1, 0), shards_after(1 + 8, 0)
    assert len(first) < len(needed)
    assert shards_after(1, 8, needed) == needed
