"""Contrastive pretraining of the ViT with captions, as BAGEL's ViT (SigLIP) comes pretrained. No boxes.

An image and a word belong together if the word is in the image's caption; which of its tokens shows what the word means
is left open. Shapes: B images, V ViT tokens of an image, P values of a patch, W words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from scone_pl.data.seeding import generator
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.data.transforms import ImageResize
from scone_pl.evaluation.scores import SCONEEVAL_TASKS
from scone_pl.model.builder import grid_positions, patchify_image
from scone_pl.model.scone import Scone
from scone_pl.model.vae import as_float
from scone_pl.progress import track
from scone_pl.worlds.icons.atlas import read_atlas
from scone_pl.worlds.icons.questions import caption
from scone_pl.worlds.icons.world import IconsConfig, IconWorld

TASKS = (SCONEEVAL_TASKS[0], *SCONEEVAL_TASKS[2:4], SCONEEVAL_TASKS[2])
"""What images are drawn from, in turn, as the set `questions`."""
_SCALE, _BIAS = 10.0, -4.0
"""Of the logits at first; both are trained, as in SigLIP (arXiv 2303.15343, section 3.2)."""


def captioned_images(config: IconsConfig, seed: int = 0) -> Iterator[tuple[Image.Image, str]]:
    """References of the stream `questions` with their captions, without end."""
    world = IconWorld(seed, config, "questions")
    number = 0
    while True:
        episode = world.sample(TASKS[number % len(TASKS)], number)
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

    Returns:
        AUROC of the names' logits: in held-out images that show what is named against those that do not.
    """
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
    features = model.connector(model.vit_model(as_float(patches.flatten(0, 1)), positions, [tokens] * images))
    features = F.normalize(features + model.vit_pos_embed(positions), dim=-1).unflatten(0, (images, tokens))
    cosines: Tensor = features @ F.normalize(_words(model)(words), dim=-1).T
    return cosines.amax(1)
