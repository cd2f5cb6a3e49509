"""Contrastive pretraining of the ViT with captions, as BAGEL's ViT (SigLIP) comes pretrained. No boxes.

An image and a word belong together if the word is in the image's caption; which of its tokens shows what the word means
is left open. Shapes: B images, V ViT tokens of an image, P values of a patch, W words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from scone_pl.data.seeding import generator
from scone_pl.data.stream import Batch
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.data.transforms import ImageResize
from scone_pl.errors import UserError
from scone_pl.model.builder import grid_positions, patchify_image
from scone_pl.model.config import SconeConfig
from scone_pl.model.network import Network
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import SplitKind
from scone_pl.model.vae import as_float
from scone_pl.progress import track
from scone_pl.training.losses import AlignmentConfig
from scone_pl.training.objective import Objective, PackLosses
from scone_pl.training.stages import Composition
from scone_pl.worlds.evaluate import packing_of
from scone_pl.worlds.icons.atlas import read_atlas
from scone_pl.worlds.icons.questions import caption
from scone_pl.worlds.icons.shards import ICON_SETS
from scone_pl.worlds.icons.world import IconsConfig, IconWorld

_SCALE, _BIAS = 15.0, -4.5
"""Of the logits (SigLIP, arXiv 2303.15343, section 3.2); `pretrain` starts from these and trains them."""


def captioned_images(config: IconsConfig, seed: int = 0) -> Iterator[tuple[Image.Image, str]]:
    """References of the stream `questions` with their captions, without end."""
    questions = ICON_SETS["questions"]
    world = IconWorld(seed, config, questions.stream)
    number = 0
    while True:
        episode = world.sample(questions.tasks[number % len(questions.tasks)], number)
        for group, scene, image in zip(episode.candidates, episode.reference_scenes, episode.references, strict=True):
            yield Image.fromarray(image), caption(episode, group, scene.name)
        number += 1


def pretrain(
    model: Scone,
    tokenizer: Tokenizer,
    config: IconsConfig,
    *,
    steps: int,
    images: int = 20_000,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> float:
    """Trains ViT, connector and the words' embeddings in place; repeatable by `seed`.

    Args:
        model: of preset `icons`, with random weights.
        tokenizer: of the captions.
        config: of the world.
        steps: optimizer steps; the learning rate rises over the first 50, then falls to 0 by a cosine.
        images: how many different images; a twentieth of them is held out.
        batch: images of a step.
        lr: peak learning rate of AdamW.
        seed: of images and their order.
        progress: whether to show a progress bar.

    Raises:
        UserError: the model has no positions for images of the world's canvas.

    Returns:
        AUROC of the names' logits: in held-out images that show what is named against those that do not.
    """
    packing_of(config.canvas, model.config.sequence_format(tokenizer.special))
    patches, tags = _read(model, tokenizer, config, images, seed, progress)
    present = torch.zeros(len(tags), model.config.decoder.vocab_size)
    for image, ids in enumerate(tags):
        present[image, ids] = 1
    known = present.any(0).nonzero().flatten()
    present = present[:, known]
    held_out = max(1, images // 20)
    scale, bias = (torch.nn.Parameter(torch.tensor(value)) for value in (math.log(_SCALE), _BIAS))
    trained = [*model.vit_model.parameters(), *model.connector.parameters(), *_words(model).parameters(), scale, bias]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    order = generator("contrastive", str(seed))
    for _ in track(range(steps), "contrastive", steps, unit="steps", show=progress):
        picked = torch.from_numpy(order.integers(images - held_out, size=batch))
        logits = scale.exp() * _cosines(model, patches[picked], known) + bias
        loss = F.binary_cross_entropy_with_logits(logits, present[picked], reduction="sum") / batch
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    names = {
        word
        for index in IconWorld(seed, config).pool
        for word in tokenizer.encode(read_atlas(config.atlas).names[index])
    }
    named = torch.tensor([int(word) in names for word in known])
    with torch.no_grad():
        cosines = _cosines(model, patches[-held_out:], known)[:, named]
    return float(binary_auroc(cosines.flatten(), present[-held_out:, named].flatten().long()))


def _words(model: Scone) -> torch.nn.Embedding:
    return model.language_model.model.embed_tokens


def _read(
    model: Scone, tokenizer: Tokenizer, config: IconsConfig, images: int, seed: int, progress: bool
) -> tuple[Tensor, list[list[int]]]:
    """(images, V, patch values) uint8, and the words of each image's caption."""
    side = model.config.vit.patch_size
    resize = ImageResize(side, config.canvas, config.canvas)
    drawn = track(islice(captioned_images(config, seed), images), "images", images, unit="images", show=progress)
    pairs = [
        (patchify_image(resize(image, interleaved=True), side), sorted(set(tokenizer.encode(text))))
        for image, text in drawn
    ]
    return torch.stack([patches for patches, _ in pairs]), [ids for _, ids in pairs]


def _cosines(model: Scone, patches: Tensor, words: Tensor) -> Tensor:
    """(B, W): the greatest cosine of a word's embedding (W,) with a token of an image, from its `patches` (B, V, P)."""
    images, tokens = patches.shape[:2]
    side = math.isqrt(tokens)
    positions = grid_positions((side, side), model.config.vit_positions_per_side).repeat(images)
    features = _features(model, as_float(patches.flatten(0, 1)), positions, [tokens] * images)
    best: Tensor = (features @ _embeddings(model, words).T).unflatten(0, (images, tokens)).amax(1)
    return best


def _features(model: Scone, patches: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
    """(all V, D), normalised: ViT tokens as they enter the decoder, from patches in [-1, 1]."""
    features = model.connector(model.vit_model(patches, positions, lengths)) + model.vit_pos_embed(positions)
    return F.normalize(features, dim=-1)


def _embeddings(model: Scone, words: Tensor) -> Tensor:
    """(W, D), normalised."""
    return F.normalize(_words(model)(words), dim=-1)


@dataclass(frozen=True, kw_only=True)
class CaptionObjective(Objective):
    """`alignment` without boxes: the loss of `pretrain` between the samples of a pack, at the decoder's inputs.

    A word belongs to the images of a sample if it is in one of the sample's texts. That is wrong for the scene of a
    target and for questions about what is not there, as captions from the web are. The ViT runs a second time for it.
    """

    def pack_losses(self, model: Network, batch: Batch, device: torch.device, *, sample_posterior: bool) -> PackLosses:
        result = super().pack_losses(model, batch, device, sample_posterior=sample_posterior)
        pack = batch.sequence
        splits = [split for split in pack.splits if split.kind == SplitKind.VIT]
        if not self.aligned or not splits:
            return result
        assert isinstance(model, Scone), "checked by GroundedComposition"
        at = pack.device
        lengths = [rows * columns for rows, columns in pack.vit_grids]
        features = _features(model, as_float(pack.vit_patches), pack.vit_positions, lengths)
        seen = sorted({split.sample for split in splits})
        row = {sample: number for number, sample in enumerate(seen)}
        texts = [(s.sample, s.content) for s in pack.splits if s.kind == SplitKind.TEXT and s.sample in row]
        ids = torch.zeros(len(pack), dtype=torch.int64, device=at).index_copy(0, pack.text_index, pack.text_ids)
        words, column = torch.cat([ids[c.start : c.stop] for _, c in texts]).unique(return_inverse=True)
        rows = torch.repeat_interleave(
            torch.tensor([row[sample] for sample, _ in texts], device=at),
            torch.tensor([len(c) for _, c in texts], device=at),
        )
        present = torch.zeros(len(seen), len(words), device=at).index_put((rows, column), torch.ones((), device=at))
        owner = torch.repeat_interleave(
            torch.tensor([row[s.sample] for s in splits], device=at), torch.tensor(lengths, device=at)
        )
        cosines = features @ _embeddings(model, words).T
        best = torch.full(present.shape, -1.0, device=at).scatter_reduce(
            0, owner[:, None].expand_as(cosines), cosines, "amax"
        )
        loss = F.binary_cross_entropy_with_logits(_SCALE * best + _BIAS, present, reduction="sum") / len(seen)
        return replace(result, alignment=loss)


class GroundedComposition(Composition):
    """Stage I, or the base before it, with the loss of captions weighed by `alignment.weight`; in one process."""

    def configure_model(self) -> None:
        """Builds the network.

        Raises:
            UserError: several processes, a base without a ViT, or settings of `alignment` that have no effect here.
        """
        if self.trainer.world_size > 1:  # the ViT runs once more outside of the forward that gathers its weights
            raise UserError("GroundedComposition trains in one process; set trainer.devices to 1")
        if not isinstance(self.network.config, SconeConfig):
            raise UserError("GroundedComposition compares words with a ViT's tokens, and this base has no ViT")
        alignment = self.settings.alignment
        if not alignment.weight:
            raise UserError("model.alignment.weight is 0; GroundedComposition needs one, or use Composition")
        if alignment.temperature != AlignmentConfig.temperature:
            raise UserError("model.alignment.temperature has no effect in GroundedComposition; leave it out")
        super().configure_model()
        self.objective = CaptionObjective.of(self.settings)
