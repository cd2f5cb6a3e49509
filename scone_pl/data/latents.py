"""Latents beside a shard set: what the autoencoder makes of every image, computed once by `python -m scone_pl latents`.

```text
<shard set>/latents/<key>/
  cache.json            of which data, images and autoencoder; written last, so without it the cache is incomplete
  000000.safetensors    of the first `CHUNK` samples: tensor "<sample>.<reference or target>" = `EncodedImage.moments`
```

The key is a digest of everything that decides the moments but the data: sizes, decoding, and the autoencoder's weights.
So caches of several sizes are beside each other, and one that no longer fits is not found. Whether it belongs to the
present data is in `cache.json`; every tensor has a checksum.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scone_pl.data.packing import PackingConfig
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.shards import ShardSet
from scone_pl.errors import UserError
from scone_pl.files import read_json, write_bytes, write_json
from scone_pl.model.sequence import EncodedImage, SequenceFormat

FOLDER = "latents"
CACHE = "cache.json"
CHUNK = 64
"""Samples of a file."""
TARGET = "target"
Encode = Callable[[list[Tensor]], list[Tensor]]
"""Images (3, H, W) uint8 -> their moments (M, h, w), on the CPU."""


@dataclass(frozen=True)
class LatentCache:
    """The latents of one shard set, for one transform and autoencoder."""

    folder: Path
    num_samples: int
    content: Mapping[str, Any]
    """What `cache.json` must say."""

    @classmethod
    def of(
        cls, shards: ShardSet, packing: PackingConfig, sequence_format: SequenceFormat, autoencoder: str
    ) -> LatentCache:
        """The cache that belongs to a shard set, complete or not.

        Args:
            shards: a local shard set.
            packing: sizes and decoding of VAE images.
            sequence_format: the model's.
            autoencoder: identity of its weights.

        Raises:
            UserError: the set is remote, or the base model has no autoencoder.
        """
        if sequence_format.layout.single_stream:
            raise UserError(
                "data.latents: this base model has no autoencoder, so there are no latents to compute; leave it out"
            )
        if shards.storage.remote:
            raise UserError(f"{shards.storage.name}: latents are kept beside a local data set; copy it to this machine")
        made = {
            "autoencoder": autoencoder,
            "resize": asdict(packing.vae_resize),
            "stride": sequence_format.latent_stride,
            "pixels": packing.pixels,
            "exif_orientation": packing.exif_orientation,
        }
        manifest = shards.manifest
        data = [manifest.index_sha256, *(shard.sha256 for shard in manifest.shards)]
        content = {"format": 1, "samples": len(shards), "data": _digest(data), **made}
        return cls(Path(shards.storage.name) / FOLDER / _digest(made), len(shards), content)

    @property
    def chunks(self) -> list[Path]:
        """The files of all chunks."""
        return [self.folder / f"{number:06d}.safetensors" for number in range(-(-self.num_samples // CHUNK))]

    def check(self) -> None:
        """Checks that the cache is complete and of the present data.

        Raises:
            UserError: it is not.
        """
        advice = "run `python -m scone_pl latents` with the same recipe"
        if not (self.folder / CACHE).is_file():
            raise UserError(f"{self.folder}: no complete latents for these sizes and this autoencoder; {advice}")
        if read_json(self.folder / CACHE, dict) != self.content:
            raise UserError(f"{self.folder}: latents of earlier data; move the folder aside, and {advice}")
        if missing := next((file for file in self.chunks if not file.is_file()), None):
            raise UserError(f"{missing}: missing; {advice}")

    def read(self, i: int) -> dict[str, EncodedImage]:
        """Images of the i-th sample, by number of the reference or "target".

        Raises:
            BrokenSampleError: the file is damaged, or has nothing of this sample as it could not be decoded.
        """
        file, found = self.chunks[i // CHUNK], {}
        try:
            with safe_open(file, framework="pt") as tensors:
                for name, (checksum, *shape) in json.loads(tensors.metadata()["images"])[str(i)].items():
                    moments = tensors.get_tensor(f"{i}.{name}")
                    if _checksum(moments) != checksum:
                        raise ValueError("wrong checksum")
                    found[name] = EncodedImage(moments, tuple(shape))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrokenSampleError("damaged latents", f"{file}: sample number {i}: {error}") from None
        return found

    def write(
        self, shards: ShardSet, packing: PackingConfig, sequence_format: SequenceFormat, encode: Encode
    ) -> Iterator[int]:
        """Writes the chunks that are missing; each appears whole or not at all, so that a killed run goes on.

        Yields:
            After each chunk, how many of its samples could not be decoded.

        Raises:
            UserError: the folder holds latents of other data, or cannot be written.
        """
        if (self.folder / CACHE).is_file() and read_json(self.folder / CACHE, dict) != self.content:
            raise UserError(f"{self.folder}: latents of earlier data; move the folder aside")
        mark = self.folder / ".begun.json"
        if mark.is_file() and read_json(mark, dict) != self.content:
            raise UserError(f"{self.folder}: begun with earlier data; move the folder aside")
        write_json(dict(self.content), mark)
        for number, file in enumerate(self.chunks):
            if file.is_file():
                yield 0
                continue
            pixels: dict[str, Tensor] = {}
            samples = range(number * CHUNK, min((number + 1) * CHUNK, self.num_samples))
            entries: dict[str, dict[str, list[int]]] = {}  # sample -> name -> checksum, (3, H, W)
            for i in samples:
                with suppress(BrokenSampleError):
                    images = _images(shards.read(i), packing, sequence_format)
                    pixels |= {f"{i}.{name}": image for name, image in images.items()}
                    entries[str(i)] = {}  # a question has no VAE image
            moments = dict(zip(pixels, encode(list(pixels.values())), strict=True))
            for full, tensor in moments.items():
                sample, _, name = full.partition(".")
                entries[sample][name] = [_checksum(tensor), *pixels[full].shape]
            write_bytes(save(moments, metadata={"images": json.dumps(entries)}), file)
            yield len(samples) - len(entries)
        write_json(dict(self.content), self.folder / CACHE)


def _images(sample: Sample, packing: PackingConfig, sequence_format: SequenceFormat) -> dict[str, Tensor]:
    """The VAE images of a sample (3, H, W) uint8, as `prepare_sample` makes them."""
    resize = packing.resizes(sequence_format)[0]
    data = {str(number): reference for number, reference in enumerate(sample.references)}
    if sample.answer and not sample.target:  # as `PreparedSample.append_to`
        data = {}
    if sample.target:
        data[TARGET] = sample.target
    return {name: resize(packing.decode(one, sequence_format)) for name, one in data.items()}


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
