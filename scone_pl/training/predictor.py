"""Images for `predict`: one per sample, resumable, the same whatever rank makes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scone_pl.data.stream import Batch
from scone_pl.model.config import NetworkConfig
from scone_pl.model.network import Network
from scone_pl.model.sequence import SequenceFormat
from scone_pl.sampling.prompts import image_size, prompts_of
from scone_pl.sampling.sampler import check_finite, decode_latents, initial_noise, sample, to_uint8
from scone_pl.sampling.settings import SamplingConfig
from scone_pl.sampling.visualize import save_image
from scone_pl.training.predictions import PredictionFolder, image_seed
from scone_pl.training.settings import StageSettings
from scone_pl.training.sharding import is_sharded


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Samples images of prompts into a folder."""

    sequence_format: SequenceFormat
    sampling: SamplingConfig
    round: int
    size: tuple[int, int]
    """Height and width in pixels of images without a target."""

    @classmethod
    def of(cls, settings: StageSettings, sequence_format: SequenceFormat, config: NetworkConfig) -> Predictor:
        """The predictor of a stage, its settings checked.

        Raises:
            UserError: a sampling setting, or a size, that the network does not support.
        """
        sampling = settings.effective_sampling
        size = image_size(sequence_format, sampling.height, sampling.width)
        sampling.check_bridge(config.decoder.num_layers, samples=True)
        return cls(
            sequence_format=sequence_format,
            sampling=sampling,
            round=settings.sampling_round,
            size=size,
        )

    def begin(self, folder: Path, recorded: Mapping[str, Any], *, write: bool) -> None:
        """Records what images in `folder` are made with; see `PredictionFolder.begin`.

        Args:
            folder: of predictions.
            recorded: what else the images depend on.
            write: on one rank only.
        """
        sampling = {k: v for k, v in dataclasses.asdict(self.sampling).items() if k not in ("height", "width")}
        settings = {**recorded, "round": self.round, "size": self.size, "sampling": sampling}
        PredictionFolder(folder).begin(settings, write=write)

    def predict(self, model: Network, batch: Batch, folder: Path, needed_by_any: Callable[[bool], bool]) -> list[Path]:
        """Generates an image per sample; finished ones are kept, broken ones made again.

        Args:
            model: the network.
            batch: samples and their pack.
            folder: of predictions.
            needed_by_any: a collective: whether any rank needs its current image.

        Returns:
            The images' files.
        """
        images = PredictionFolder(folder)
        for request, prompt in zip(batch.samples, prompts_of(batch.sequence, self.size), strict=True):
            needed = not images.is_finished(request)
            # Of a sharded model all ranks must run it, or none: each holds a part of the weights.
            if not (needed_by_any(needed) if is_sharded(model) else needed):
                continue
            assert self.sampling.seed is not None  # see `StageSettings`
            seed = image_seed(self.sampling.seed, self.round, request.key, request.metadata.get("task_type", ""))
            noise = initial_noise(prompt, model, self.sequence_format, torch.Generator().manual_seed(seed))
            (latents,) = sample(model, self.sequence_format, [prompt], self.sampling, [noise])
            if needed:
                check_finite(latents, str(images.file_of(request)))
                save_image(to_uint8(decode_latents(model, latents)).numpy(), images.file_of(request))
        return [images.file_of(request) for request in batch.samples]
