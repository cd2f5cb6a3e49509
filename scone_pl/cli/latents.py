"""`python -m scone_pl latents`: what the autoencoder makes of a recipe's training images, computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scone_pl.checkpoints.folder import read_config
from scone_pl.checkpoints.model import autoencoder_identity, load_autoencoder
from scone_pl.cli.stages import stages
from scone_pl.data.latents import LatentCache
from scone_pl.data.packing import PackingConfig
from scone_pl.data.shards import ShardSet
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.messages import warn
from scone_pl.model.vae import Autoencoder, as_float
from scone_pl.outputs import check_output_folder
from scone_pl.progress import Progress
from scone_pl.sampling.checks import as_device
from scone_pl.training.start import check_start


def latents(recipe: list[str], device: str | None = None) -> None:
    """Encode a recipe's training images once; `--data.latents true` then trains on the result.

    All other options are those of `fit`: --config FILE, and any override. Run the same command again to resume.

    Args:
        recipe: Options of `fit`.
        device: cpu, cuda, cuda:1, ...; by default a GPU if there is one.
    """
    chosen = as_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = [one for _, one in stages(["fit", *recipe])]
    folder = check_start(settings[0].model.init_args.init_from)
    config = read_config(folder)
    sequence_format = config.sequence_format(Tokenizer.from_folder(folder).special)
    identity = autoencoder_identity(folder)
    work: dict[Any, tuple[LatentCache, ShardSet, PackingConfig]] = {}
    for one in settings:
        packing = PackingConfig.parsed(one.data.packing)
        packing.check(sequence_format)
        for source in one.data.train or []:
            shards = ShardSet(source.path)
            cache = LatentCache.of(shards, packing, sequence_format, identity)
            check_output_folder(cache.folder)
            work[cache.folder] = cache, shards, packing
    autoencoder = load_autoencoder(folder, chosen)

    def encode(images: list[Tensor]) -> list[Tensor]:
        return [_moments(autoencoder, image.to(chosen)) for image in images]

    for cache, shards, packing in work.values():
        broken = 0
        with Progress("encoding", len(cache.chunks), unit="files") as bar:
            for count in cache.write(shards, packing, sequence_format, encode):
                broken += count
                bar.advance()
        if broken:
            warn(f"{cache.folder}: {broken} of {len(shards)} samples could not be decoded; training skips them")
        print(cache.folder)


@torch.no_grad()
def _moments(autoencoder: Autoencoder, image: Tensor) -> Tensor:
    return autoencoder.moments(as_float(image[None]))[0].float().cpu().contiguous()
