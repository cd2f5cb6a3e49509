"""What a call of the pipeline returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image

from scone_pl.errors import UserError
from scone_pl.model.network import Network
from scone_pl.sampling.context import Prompt
from scone_pl.sampling.sampler import SampledLatents, check_finite, decode_latents, to_uint8
from scone_pl.sampling.visualize import Pixels, bridge_image

OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass(frozen=True)
class ReferenceMaps:
    """The bridge's maps of one reference image."""

    reference: Pixels
    """(H, W, 3) uint8, as the autoencoder saw it."""
    similarity: np.ndarray
    """(rows, columns) over its VAE tokens: mean cosine similarity to the instruction."""
    blocked: np.ndarray
    """The same grid, bool: hidden from the target."""


@dataclass(frozen=True)
class PipelineOutput:
    """Result of a call, in the order of its prompts; also read as `output[0]`, `output["images"]` or a tuple."""

    images: Any
    """`pil`: a list of PIL images; `np`: a (N, H, W, 3) float32 array in [0, 1]; `pt`: a (N, 3, H, W) float tensor in
    [0, 1]; `latent`: a list of (tokens, values) float tensors. Images of different sizes are a list in any case."""
    bridge: list[tuple[ReferenceMaps, ...]] | None
    """Per image the maps of each reference; None if the bridge was off."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in their order."""
        return (self.images,) if self.bridge is None else (self.images, self.bridge)

    def __getitem__(self, key: int | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in ("images", "bridge"):
            raise KeyError(key)
        return getattr(self, key)

    def bridge_image(self, index: int = 0, *, cell: int = 256) -> Image.Image:
        """A row per reference of image `index`: the reference, blocked regions paled, the similarity as heat.

        Raises:
            UserError: the bridge was off, or the prompt has no reference.
        """
        if self.bridge is None or not self.bridge[index]:
            raise UserError("there are no maps of the bridge: it was off, or the prompt has no reference image")
        rows = [(m.reference, m.similarity, m.blocked) for m in self.bridge[index]]
        return Image.fromarray(bridge_image(rows, cell=cell))


def check_output_type(output_type: str) -> None:
    """Raises `UserError` unless it is an `OutputType`."""
    if output_type not in get_args(OutputType):
        raise UserError(f"output_type {output_type!r:.80} is not one of {', '.join(get_args(OutputType))}")


def output_images(model: Network, results: Sequence[SampledLatents], output_type: OutputType) -> Any:
    """Sampled latents as `PipelineOutput.images`."""
    if output_type == "latent":
        return [result.tokens for result in results]
    decoded = []
    for result in results:
        check_finite(result, "image")
        decoded.append(decode_latents(model, result))
    if output_type == "pil":
        return [Image.fromarray(to_uint8(image).numpy()) for image in decoded]
    unit = [(image + 1) / 2 for image in decoded]
    same_size = len({image.shape for image in unit}) == 1
    if output_type == "pt":
        return torch.stack(unit) if same_size else unit
    arrays = [image.permute(1, 2, 0).cpu().numpy() for image in unit]
    return np.stack(arrays) if same_size else arrays


def reference_maps(prompt: Prompt, result: SampledLatents) -> tuple[ReferenceMaps, ...]:
    """The bridge's maps of each reference of a prompt."""
    return tuple(
        ReferenceMaps(to_uint8(vae).numpy(), similarity.float().cpu().numpy(), blocked.cpu().numpy())
        for (vae, _), similarity, blocked in zip(prompt.references, result.similarity, result.blocked, strict=True)
    )
