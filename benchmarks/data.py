"""Decode + transform + pack: samples and tokens a second of one core, against a plain parquet reader.

The baseline does the same work in the way of the release: read a row group, open each image with PIL once, resize it
for the VAE and for the ViT, to-tensor and normalise in float, pack first come, first packed. Both use CPU time of one
thread, taken in turns, so other load on the machine matters little. A row of its own is what Pillow alone takes to
decode and resize to exactly these pixels: less than that no reader with `pixels: exact` can take.

    .venv/bin/python benchmarks/data.py --source Scone-S2I-57K    # about 4 minutes for 136 rows; --quick for one
    .venv/bin/python benchmarks/data.py --only memory             # needs no data; so does prefetch
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from data_parts import measure_memory, measure_packing, measure_prefetch
from PIL import Image
from workload import SEQUENCE_FORMAT

from scone_pl.data.convert import ConvertConfig, convert
from scone_pl.data.decoding import decode_rgb
from scone_pl.data.inputs import open_input
from scone_pl.data.packing import PackingConfig
from scone_pl.data.parquet import find_parquet
from scone_pl.data.sources import Mixture, Source
from scone_pl.data.stream import Cursor, PackMaker, PackStream
from scone_pl.data.tokenizer import Tokenizer, byte_tokenizer
from scone_pl.data.transforms import ImageResize, to_tensor
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import PackedSequence


def release_style(root: Path, packing: PackingConfig, words: Tokenizer) -> Iterator[PackedSequence]:
    """Packs from parquet row groups, the plain way."""
    vae, vit = packing.resizes(SEQUENCE_FORMAT)
    builder, pending = SequenceBuilder(SEQUENCE_FORMAT), 0
    for file in find_parquet(root):
        reader = pyarrow.parquet.ParquetFile(file.path)
        for group in range(reader.num_row_groups):
            for row in reader.read_row_group(group, columns=["image", "instruction"]).to_pylist():
                sample = _plain_sample(row, vae, vit, words)
                tokens = sum(length for length, _ in sample)
                if pending + tokens > packing.token_budget:
                    yield builder.build()
                    builder, pending = SequenceBuilder(SEQUENCE_FORMAT), 0
                builder.begin_sample()
                for _, add in sample:
                    add(builder)
                pending += tokens
    if pending:
        yield builder.build()


def _plain_sample(row: dict, vae: ImageResize, vit: ImageResize, words: Tokenizer) -> list:
    parts = []
    *references, target = row["image"]
    for number, data in enumerate(references):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        pixels = _plain_tensor(image, vae)
        small = _plain_tensor(image, vit)
        parts.append((_tokens(pixels, 16), lambda b, p=pixels, n=number: b.add_vae(p, reference=n)))
        parts.append((_tokens(small, 14), lambda b, p=small, n=number: b.add_vit(p, reference=n)))
    ids = words.encode(row["instruction"])
    parts.append((len(ids) + 2, lambda b: b.add_text(ids)))
    pixels = _plain_tensor(Image.open(io.BytesIO(target)).convert("RGB"), vae)
    parts.append((_tokens(pixels, 16), lambda b: b.add_targets(pixels, [0.0])))
    return parts


def _plain_tensor(image: Image.Image, resize: ImageResize) -> torch.Tensor:
    """torchvision's resize, ToTensor and Normalize(0.5, 0.5), as they work inside."""
    image = image.resize(resize.size(*image.size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous()
    return pixels.to(torch.float32).div(255).sub_(0.5).div_(0.5)


def _tokens(image: torch.Tensor, stride: int) -> int:
    return image.shape[1] * image.shape[2] // stride**2 + 2


def ours(folder: Path, packing: PackingConfig, words: Tokenizer) -> Iterator[PackedSequence]:
    """One epoch of the training stream."""
    mixture = Mixture([Source(str(folder))], SEQUENCE_FORMAT, words, packing)
    maker = PackMaker(mixture, SEQUENCE_FORMAT, words, packing, seed=0)
    for _, batch in zip(range(len(mixture.plan(0, 0))), PackStream(maker, Cursor()), strict=False):
        yield batch.sequence


def pillow_alone(mixture: Mixture, packing: PackingConfig) -> tuple[float, int, int]:
    """CPU seconds, samples and tokens of decoding and resizing every image of a mixture, and nothing else."""
    vae, vit = packing.resizes(SEQUENCE_FORMAT)
    spent, draws = 0.0, mixture.order(0, 0)
    for draw in draws:
        sample = mixture.read(draw)
        began = time.process_time()
        for data in sample.references:
            image = decode_rgb(data)
            vae.resize(image), vit.resize(image)
        vae.resize(decode_rgb(sample.target))
        spent += time.process_time() - began
    return spent, len(draws), int(sum(mixture.lengths[0]))


def timed(make: Callable[[], Iterator[PackedSequence]]) -> tuple[float, int, int]:
    """CPU seconds, samples, tokens."""
    began, samples, tokens = time.process_time(), 0, 0
    for pack in make():
        samples += pack.num_samples
        tokens += len(pack)
    return time.process_time() - began, samples, tokens


def enlarged(source: Path, folder: Path, side: int, limit: int) -> Path:
    """Part of the sample with its images' long sides brought to `side` pixels, as parquet."""
    rows = []
    for file in find_parquet(source):
        for row in pyarrow.parquet.read_table(file.path, columns=["image", "instruction"]).to_pylist()[: limit // 5]:
            images = []
            for data in row["image"]:
                image = decode_rgb(data)
                scale = side / max(image.size)
                out = io.BytesIO()
                size = tuple(round(s * scale) for s in image.size)
                image.resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=92)
                images.append(out.getvalue())
            rows.append({"image": images, "instruction": row["instruction"]})
    path = folder / f"side{side}" / "set" / "00000.parquet"
    path.parent.mkdir(parents=True)
    schema = pyarrow.schema([("image", pyarrow.list_(pyarrow.binary())), ("instruction", pyarrow.string())])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path, row_group_size=8)
    return path.parent.parent


def as_shards(source: Path, scratch: Path, name: str) -> Path:
    """A shard set of a parquet data set."""
    folder = scratch / f"{name}-shards"
    convert(open_input(str(source), "parquet"), folder, ConvertConfig(), progress=False)
    return folder


def compare_all(source: Path, scratch: Path, repeats: int) -> None:
    """The tables of all workloads."""
    compare("the sample as it is", source, scratch, repeats)
    for side, limit in ((1024, 40), (3000, 15)):
        compare(f"long sides of {side} pixels", enlarged(source, scratch, side, limit), scratch, repeats)


def compare(name: str, source: Path, scratch: Path, repeats: int) -> None:
    """The table of one workload."""
    words = byte_tokenizer()
    shards = as_shards(source, scratch, name)
    exact = PackingConfig().without_dropout()
    fast = PackingConfig(pixels="fast").without_dropout()
    mixture = Mixture([Source(str(shards))], SEQUENCE_FORMAT, words, exact)
    runs = {
        "parquet reader": lambda: timed(lambda: release_style(source, exact, words)),
        "shards, pixels: exact": lambda: timed(lambda: ours(shards, exact, words)),
        "shards, pixels: fast": lambda: timed(lambda: ours(shards, fast, words)),
        "Pillow's decode and resize alone": lambda: pillow_alone(mixture, exact),
    }
    best: dict[str, tuple[float, int, int]] = {}
    for _ in range(repeats):
        for run, measure in runs.items():
            best[run] = min(best.get(run, (math.inf, 0, 0)), measure())
    base = best["parquet reader"][0]
    print(f"\n{name}: {best['shards, pixels: exact'][1]} samples, {best['shards, pixels: exact'][2]} tokens")
    print(
        f"  {'one core':32}{'samples/s':>10}{'tokens/s':>10}{'ratio':>7}   workers for a GPU at 18 s, 5 s, 2 s a step"
    )
    for run, (seconds, samples, tokens) in best.items():
        pack = exact.token_budget * seconds / tokens
        workers = ", ".join(str(math.ceil(pack / step)) for step in (18, 5, 2))
        print(
            f"  {run:32}{samples / seconds:10.1f}{tokens / seconds:10.0f}{base / seconds:7.2f}   "
            f"{workers} ({pack:.2f} s a pack)"
        )
    _where_time_goes(mixture, exact, fast)


def _where_time_goes(mixture: Mixture, exact: PackingConfig, fast: PackingConfig) -> None:
    began = time.process_time()
    samples = [mixture.read(draw) for draw in mixture.order(0, 0)[:60]]
    read = time.process_time() - began
    images = [data for sample in samples for data in sample.references]
    parts, error = {"read and parse the tar": read / len(images)}, {}
    results: dict[str, list[Image.Image]] = {}
    for name, packing in (("exact", exact), ("fast", fast)):
        vae, vit = packing.resizes(SEQUENCE_FORMAT)
        pictures, parts[f"decode ({name})"] = _each(lambda data, p=packing: p.decode(data, SEQUENCE_FORMAT), images)
        results[f"VAE {name}"], parts[f"resize for the VAE ({name})"] = _each(vae.resize, pictures)
        results[f"ViT {name}"], parts[f"resize for the ViT ({name})"] = _each(vit.resize, pictures)
    _, parts["to tensor, VAE"] = _each(lambda image: to_tensor(image).shape, results["VAE exact"])
    for kind in ("VAE", "ViT"):
        pairs = zip(results[f"{kind} exact"], results[f"{kind} fast"], strict=True)
        gaps = np.concatenate([np.abs(np.array(a, np.int16) - np.array(b, np.int16)).ravel() for a, b in pairs])
        error[kind] = f"{kind} mean {gaps.mean():.4f}, largest {gaps.max()}, over 2 in {(gaps > 2).mean():.2%}"
    print("  ms a reference: " + ", ".join(f"{name} {1e3 * value:.1f}" for name, value in parts.items()))
    print("  pixel error of fast, of 255: " + "; ".join(error.values()))


def _each(function: Callable, items: list) -> tuple[list, float]:
    began = time.process_time()
    results = [function(item) for item in items]
    return results, (time.process_time() - began) / len(items)


def main() -> None:
    """All measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a data set in the Scone-S2I parquet layout")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=100_000, help="of the memory measurement")
    parser.add_argument("--quick", action="store_true", help="one repeat, 5000 samples for memory")
    parser.add_argument("--only", choices=["compare", "packing", "prefetch", "memory"], help="one part of it")
    options = parser.parse_args()
    if options.source is None and options.only not in ("prefetch", "memory"):
        parser.error("--source is needed, or --only prefetch or --only memory")
    if options.quick:
        options.repeats, options.samples = 1, 5000
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        parts = {
            "compare": lambda: compare_all(options.source, scratch, options.repeats),
            "packing": lambda: measure_packing(as_shards(options.source, scratch, "packing"), SEQUENCE_FORMAT),
            "prefetch": lambda: measure_prefetch(scratch),
            "memory": lambda: measure_memory(scratch, options.samples),
        }
        for name, part in parts.items():
            if options.only in (None, name):
                part()


if __name__ == "__main__":
    main()
