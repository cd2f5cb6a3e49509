"""Contrastive pretraining of ViT, connector and words' embeddings with texts, as BAGEL's ViT (SigLIP) has. No boxes.

Two losses. *Words*: an image and a word belong together if the word is in the image's caption. *Instructions*: an image
belongs to its own instruction among those of the batch; what is compared is what the bridge compares at the decoder's
inputs, the mean over the instruction's words (without its begin and end token, which the bridge averages in). In both,
which token of the image shows what is meant is left open: the most similar one counts. Words come first: instructions
alone, or both from the start, teach less.

Shapes: B images, V ViT tokens of an image, P values of a patch, W words, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

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
from scone_pl.worlds.evaluate import packing_of
from scone_pl.worlds.icons.atlas import read_atlas
from scone_pl.worlds.icons.questions import caption
from scone_pl.worlds.icons.shards import ICON_SETS
from scone_pl.worlds.icons.world import IconsConfig, IconWorld

_SCALE, _BIAS = 15.0, -4.5
"""Of a word's logits (SigLIP, arXiv 2303.15343, section 3.2); `pretrain` starts from these and trains them."""
_INSTRUCTION_SCALE = 100 / 3
"""Of an instruction's logits: a third of where CLIP stops (arXiv 2103.00020, section 2.4); trained, too."""
_INSTRUCTION_WEIGHT = 3.0
"""Of the loss of instructions beside that of words."""


@dataclass(frozen=True)
class Described:
    """One reference image and its texts."""

    image: Image.Image
    caption: str
    """All subjects of the image, and its scene."""
    instruction: str
    """Names one of its subjects, and those of other references; the scene is that of the target."""


def described_images(config: IconsConfig, seed: int = 0) -> Iterator[Described]:
    """References of the stream `questions`, without end.

    They come from all tasks but `composition_multi`, whose references show one subject each as those of
    `composition_single` do.
    """
    tasks = [task for task in SCONEEVAL_TASKS if task != "composition_multi"]
    stream = ICON_SETS["questions"].stream
    world = IconWorld(seed, config, stream)
    for number in count():
        episode = world.sample(tasks[number % len(tasks)], number)
        for group, scene, image in zip(episode.candidates, episode.reference_scenes, episode.references, strict=True):
            yield Described(Image.fromarray(image), caption(episode, group, scene.name), episode.instruction)


def pretrain(
    model: Scone,
    tokenizer: Tokenizer,
    config: IconsConfig,
    *,
    steps: int,
    images: int = 50_000,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> float:
    """Trains ViT, connector and the words' embeddings in place; repeatable by `seed`.

    Args:
        model: of preset `icons`, with random weights.
        tokenizer: of the texts.
        config: of the world.
        steps: optimizer steps, half of them with words alone, half with instructions too; in each half the learning
            rate rises over the first 50, then falls to 0 by a cosine.
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
    patches, captions, instructions = _read(model, tokenizer, config, images, seed, progress)
    known = captions.any(0).nonzero().flatten()
    present, said = captions[:, known].clamp(max=1).float(), instructions.float()
    held_out = max(1, images // 20)
    start = (math.log(_SCALE), _BIAS, math.log(_INSTRUCTION_SCALE))
    scale, bias, instruction_scale = (torch.nn.Parameter(torch.tensor(value)) for value in start)
    network = [*model.vit_model.parameters(), *model.connector.parameters(), *_words(model).parameters()]
    trained = [*network, scale, bias, instruction_scale]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    half = (steps + 1) // 2
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step % half + 1) / 50) * (1 + math.cos(math.pi * (step % half) / half)) / 2
    )
    order = generator("contrastive", str(seed))
    for step in track(range(steps), "contrastive", steps, unit="steps", show=progress):
        picked = torch.from_numpy(order.integers(images - held_out, size=batch))
        features, words = image_features(model, patches[picked]), word_embeddings(model, known)
        loss = word_loss(best_similarity(features, words), present[picked], scale.exp(), bias)
        if step >= half:
            texts = means(said[picked], F.normalize(_words(model).weight, dim=-1))
            loss = loss + _INSTRUCTION_WEIGHT * instruction_loss(
                best_similarity(features, texts), instruction_scale.exp()
            )
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
        cosines = best_similarity(image_features(model, patches[-held_out:]), word_embeddings(model, known))[:, named]
    return float(binary_auroc(cosines.flatten(), present[-held_out:, named].flatten().long()))


def word_loss(cosines: Tensor, present: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The sum over words of each one's binary cross-entropy, mean over images; both are (B, W)."""
    return F.binary_cross_entropy_with_logits(scale * cosines + bias, present, reduction="sum") / len(present)


def instruction_loss(cosines: Tensor, scale: Tensor) -> Tensor:
    """Which image is an instruction's, and which instruction an image's (CLIP); (B, B), images by instructions.

    Two references of one episode in a batch, which is rare, count as wrong for each other.
    """
    own = torch.arange(len(cosines), device=cosines.device)
    return (F.cross_entropy(scale * cosines, own) + F.cross_entropy(scale * cosines.T, own)) / 2


def _words(model: Scone) -> torch.nn.Embedding:
    return model.language_model.model.embed_tokens


def _read(
    model: Scone, tokenizer: Tokenizer, config: IconsConfig, images: int, seed: int, progress: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Patches (images, V, P) uint8; how often each word of the vocabulary is in captions and in instructions."""
    side, words = model.config.vit.patch_size, model.config.decoder.vocab_size
    resize = ImageResize(side, config.canvas, config.canvas)
    patches, captions, instructions = [], *torch.zeros(2, images, words, dtype=torch.uint8)
    drawn = islice(described_images(config, seed), images)
    for row, one in enumerate(track(drawn, "images", images, unit="images", show=progress)):
        patches.append(patchify_image(resize(one.image, interleaved=True), side))
        for counts, text in ((captions, one.caption), (instructions, one.instruction)):
            counts[row] = torch.bincount(torch.tensor(tokenizer.encode(text)), minlength=words)
    return torch.stack(patches), captions, instructions


def means(said: Tensor, words: Tensor) -> Tensor:
    """(B, D): means of `words` (W, D) over each text, which has them as often as `said` (B, W)."""
    mean: Tensor = said @ words / said.sum(1, keepdim=True)
    return mean


def image_features(model: Scone, patches: Tensor) -> Tensor:
    """(B, V, D), normalised: ViT tokens as they enter the decoder, of square images; from `patches` (B, V, P) uint8."""
    images, tokens = patches.shape[:2]
    side = math.isqrt(tokens)
    positions = grid_positions((side, side), model.config.vit_positions_per_side).repeat(images)
    features = model.connector(model.vit_model(as_float(patches.flatten(0, 1)), positions, [tokens] * images))
    return F.normalize(features + model.vit_pos_embed(positions), dim=-1).view(images, tokens, -1)


def best_similarity(features: Tensor, texts: Tensor) -> Tensor:
    """(B, W): the greatest similarity of a text (W, D), a word or a mean of several, with a token (B, V, D)."""
    best: Tensor = (features @ texts.T).amax(1)
    return best


def word_embeddings(model: Scone, words: Tensor) -> Tensor:
    """(W, D), normalised."""
    return F.normalize(_words(model)(words), dim=-1)
