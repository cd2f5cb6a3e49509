"""A snapshot that is not what was written is refused in one line, and none runs code."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from scone_pl.errors import UserError
from scone_pl.training import intact
from scone_pl.training.intact import CHECKSUMS, INDEX_FILE, DamagedError, Part, check_archive, read_index
from scone_pl.training.snapshots import RUN_FILE, SingleFileIO, SnapshotWriter, read_run, read_tensors, reader_of

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
RUN = {"global_step": 1, "name": "a"}
PERIL = "a_marker_that_hostile_files_would_make"


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.25)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return layer, optimizer


def state(layer: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    return {"model": weights, "optimizer_0": get_optimizer_state_dict(layer, optimizer)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "step-000001"
    writer = SnapshotWriter()
    writer.write(state(*network()), RUN, path)
    writer.wait()
    return path


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        return {k: v for name, inner in values.items() for k, v in flat(inner, f"{prefix}.{name}").items()}
    if isinstance(values, list) and values and isinstance(values[0], dict):
        return flat(dict(enumerate(values)), prefix)
    return {prefix: values}


def read(path: Path) -> dict[str, Any]:
    """All that a resumed run takes from a snapshot."""
    run = read_run(path)
    into = state(*network())
    for value in flat(into).values():
        if isinstance(value, torch.Tensor):
            value.fill_(-1)
    read_tensors(path, into, "model")
    return {"run": run, **flat(into)}


def outcome(path: Path) -> tuple[dict[str, Any], str | None]:
    """What was read, or the line that refuses it."""
    try:
        return read(path), None
    except UserError as error:
        return {}, str(error)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        v.equal(other[k]) if isinstance(v, torch.Tensor) else v == other[k] for k, v in one.items()
    )


def copy(whole: Path, tmp_path: Path) -> Path:
    path = tmp_path / whole.name
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(whole, path)
    return path


@pytest.mark.parametrize("checksums", [True, False], ids=["with checksums.json", "of an older version"])
def test_damage_of_any_kind_is_one_line_or_changes_nothing(checksums: bool, whole: Path, tmp_path: Path) -> None:
    """Flipped bits, cut and grown files, zeroed and exchanged stretches, missing files.

    Without `checksums.json` the index has none; what is checked of it then is in `read_index`, so it is left alone.
    """
    expected, rng = read(whole), random.Random(0)
    files = [RUN_FILE, "__0_0.distcp", *([INDEX_FILE, CHECKSUMS] if checksums else [])]
    content = {name: (whole / name).read_bytes() for name in files}
    refused = 0
    path = copy(whole, tmp_path)
    if not checksums:
        (path / CHECKSUMS).unlink()
    for number in range(300):
        name = rng.choice(files)
        damaged = bytearray(content[name])
        at = rng.randrange(len(damaged))
        kind = number % 5
        if kind <= 1:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del damaged[at:]
        elif kind == 3:
            damaged[at : at + 64] = bytes(len(damaged[at : at + 64]))
        else:
            damaged[at:at] = rng.randbytes(8)
        (path / name).write_bytes(damaged)
        result, line = outcome(path)
        refused += line is not None
        assert "\n" not in (line or "")
        assert (str(path) in line) if line is not None else same(result, expected), (name, kind, at)
        (path / name).write_bytes(content[name])
    assert refused > 180  # the rest lies where nothing is
    assert same(read(path), expected)


def test_every_flipped_bit_of_a_weight_is_noticed(whole: Path, tmp_path: Path) -> None:
    path = copy(whole, tmp_path)
    weight = state(*network())["model"]["weight"]
    raw = (path / "__0_0.distcp").read_bytes()
    at = raw.index(weight.numpy().tobytes())
    for offset in range(0, weight.nbytes, 7):
        damaged = bytearray(raw)
        damaged[at + offset] ^= 1 << offset % 8
        (path / "__0_0.distcp").write_bytes(damaged)
        with pytest.raises(UserError, match=r"the checksum of .* is wrong.*move it aside"):
            read(path)
        with pytest.raises(UserError, match="the checksum of"):  # as export reads
            reader_of(path).read("model", "weight")


@pytest.mark.parametrize("name", [RUN_FILE, "__0_0.distcp", INDEX_FILE])
def test_a_missing_file_is_named(name: str, whole: Path, tmp_path: Path) -> None:
    for checksums in (True, False):
        path = copy(whole, tmp_path)
        if not checksums:
            (path / CHECKSUMS).unlink()
        (path / name).unlink()
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            read(path)


def test_an_older_snapshot_opens_with_a_note(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy(whole, tmp_path)
    (path / CHECKSUMS).unlink()
    notes: list[str] = []
    monkeypatch.setattr(intact, "rank_zero_info", notes.append)
    assert same(read(path), read(whole))
    assert [note for note in notes if "older version" in note and str(path) in note]


def test_a_file_of_a_run_without_fully_sharded_is_checked_too(tmp_path: Path) -> None:
    file = tmp_path / "step-000001"
    weight = torch.arange(64.0) + 1
    torch.save({"global_step": 1, "state_dict": {"model.w": weight}}, file)
    raw = file.read_bytes()
    at = raw.index(weight.numpy().tobytes())
    assert reader_of(file).read("model", "w").equal(weight)
    file.write_bytes(raw[: at + 9] + bytes([raw[at + 9] ^ 4]) + raw[at + 10 :])
    with pytest.raises(UserError, match="the checksum of"):
        reader_of(file)


def test_single_files_are_written_whole_and_read_without_running_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plugin, file = SingleFileIO(), tmp_path / "made/step-000001"
    plugin.save_checkpoint({"global_step": 1, "state_dict": {"w": torch.ones(3)}}, file)
    result = plugin.load_checkpoint(file)
    assert result["state_dict"]["w"].equal(torch.ones(3))
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    torch.save({"global_step": Hostile()}, file)
    for trust in (None, False):
        with pytest.raises(UserError, match="not readable"):
            plugin.load_checkpoint(file, weights_only=trust)
    assert not Path(PERIL).exists()


class Hostile:
    """Makes a marker where a pickle of it is read."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (PERIL,)


def test_what_runs_code_when_unpickled_is_refused_wherever_it_stands(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    index = read_index(whole)

    def in_place_of(name: str) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            (path / name).write_bytes(pickle.dumps(Hostile()))

        return write

    def within_the_index(path: Path) -> None:
        index.planner_data["model.weight"] = Hostile()
        (path / INDEX_FILE).write_bytes(pickle.dumps(index))
        index.planner_data["model.weight"] = ("model", "weight")

    def as_a_value(path: Path) -> None:
        """As an optimizer's setting: no tensor, so torch's own planner unpickles it."""
        image = io.BytesIO()
        torch.save(Hostile(), image)
        own = read_index(path)
        name = next(n for n, e in own.state_dict_metadata.items() if isinstance(e, BytesStorageMetadata))
        info = own.storage_data[MetadataIndex(name)]
        info.offset, info.length = (path / info.relative_path).stat().st_size, image.tell()
        with (path / info.relative_path).open("ab") as file:
            file.write(image.getvalue())
        (path / INDEX_FILE).write_bytes(pickle.dumps(own))

    def as_the_run(path: Path) -> None:
        torch.save({"global_step": Hostile()}, path / RUN_FILE)

    ways = [in_place_of(INDEX_FILE), in_place_of(RUN_FILE), in_place_of("__0_0.distcp")]
    for way in [*ways, within_the_index, as_a_value, as_the_run]:
        path = copy(whole, tmp_path)
        (path / CHECKSUMS).unlink()  # whoever writes such a file can write its checksum too
        way(path)
        with pytest.raises(UserError, match="not readable"):
            read(path)
        assert not Path(PERIL).exists()
    with pytest.raises(FileNotFoundError):
        Path(PERIL).rmdir()
    pickle.loads(pickle.dumps(Hostile()))  # noqa: S301 (so that the marker is one)
    assert Path(PERIL).is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.storage_data.clear(), "has no location"),
        (lambda index: setattr(first(index), "relative_path", "../run/__0_0.distcp"), "leads to no file"),
        (lambda index: setattr(first(index), "relative_path", "/dev/zero"), "leads to no file"),
        (lambda index: setattr(first(index), "relative_path", "absent.distcp"), "is missing"),
        (lambda index: setattr(first(index), "offset", 10**9), "is shorter than"),
        (lambda index: setattr(first(index), "transform_descriptors", ["zstd"]), "asks for a transformation"),
        (lambda index: setattr(weight(index), "size", torch.Size([400, 3])), "do not make up the whole"),
        (lambda index: setattr(weight(index).chunks[0], "sizes", torch.Size([2, 6])), "outside of it"),
        (lambda index: weight(index).chunks.clear(), "do not make up the whole"),
    ],
)
def test_an_index_that_cannot_be_is_refused(
    change: Callable[[Any], Any], message: str, whole: Path, tmp_path: Path
) -> None:
    path = copy(whole, tmp_path)
    index = read_index(path)
    change(index)
    (path / INDEX_FILE).write_bytes(pickle.dumps(index))
    with pytest.raises(DamagedError, match=message):
        read_index(path)


def first(index: Any) -> Any:
    return next(iter(index.storage_data.values()))


def weight(index: Any) -> Any:
    return index.state_dict_metadata["model.weight"]


def test_no_index_names_anything_but_what_it_consists_of(whole: Path, tmp_path: Path) -> None:
    path = copy(whole, tmp_path)
    for name in ("os\nsystem", "builtins\neval", "torch\nload", "torch.serialization\nload", "pathlib\nos"):
        (path / INDEX_FILE).write_bytes(f"c{name}\n.".encode())
        with pytest.raises(pickle.UnpicklingError, match="has no business there"):
            read_index(path)


def test_odd_checksum_files_are_refused(whole: Path, tmp_path: Path) -> None:
    path = copy(whole, tmp_path)
    for odd in ("[]", "{}", '{"sha256": [], "bytes": {}}', '{"sha256": {"../x": ""}, "bytes": {}}', "{", "\udead"):
        (path / CHECKSUMS).write_text(odd, "utf-8", "surrogatepass")
        with pytest.raises(UserError):
            read_run(path)
    assert json.loads((whole / CHECKSUMS).read_text())["sha256"].keys() == {INDEX_FILE, RUN_FILE}


def test_a_part_of_a_file_is_read_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    with (tmp_path / "a").open("rb") as file:
        part = Part(file, 10, 20)
        assert part.read() == bytes(range(10, 30))
        assert part.seek(-5, io.SEEK_END) == 15
        assert part.read(50) == bytes(range(25, 30))
        assert part.seek(40) == 40
        assert part.read(1) == b""
        with pytest.raises(DamagedError):
            check_archive(part, "a")  # type: ignore[arg-type]  # has of a file what zipfile asks for
