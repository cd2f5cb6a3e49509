"""Samples to the splits of a packed sequence (docs/specification.md 3), and split lengths before decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from scone_pl.data.decoding import ExifOrientation, decode_rgb
from scone_pl.data.index import IndexEntry
from scone_pl.data.sample import BrokenSampleError, Candidate, Sample
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.data.transforms import ImageResize, PixelResize, ResizeLimits, to_tensor
from scone_pl.errors import UserError
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.layout import ReferenceImages
from scone_pl.model.sequence import EncodedImage, Names, SequenceFormat
from scone_pl.ranges import check_number, check_whole


@dataclass(frozen=True, kw_only=True)
class PackingConfig:
    """How samples become sequences."""

    token_budget: int = 26496
    """Maximum tokens per packed sequence (release: max_num_tokens of the training scripts)."""
    targets_per_sample: int = 1
    """Noise levels per sample that share its context; exact, since a target attends to the context and itself only
    (release: 1)."""
    instruction_dropout: float = 0.1
    """Probability of dropping a sample's instruction (paper and release: 0.1)."""
    vae_dropout: float = 0.0
    """Probability of dropping a reference's VAE split (release: 0 in all Scone stages)."""
    vit_dropout: float = 0.0
    """Probability of dropping a reference's ViT split (release: 0 in all Scone stages)."""
    vae_resize: ResizeLimits = field(default_factory=lambda: ResizeLimits(max_size=1024, min_size=512))
    """Sizes of VAE images and targets (release: data configs, 512..1024)."""
    vit_resize: ResizeLimits = field(default_factory=lambda: ResizeLimits(max_size=518, min_size=224))
    """Sizes of ViT images (release: 224..518 in training, up to 980 in inference)."""
    vit_source: Literal["original", "vae_resized"] = "original"
    """Image that the ViT image is resized from (release: original in training, vae_resized in inference)."""
    pixels: Literal["exact", "fast"] = "exact"
    """`exact`: the release's pixels. `fast`: JPEGs of more than twice the target size are decoded at a fraction of
    their size, and torch resizes (errors: see `benchmarks/data.py`). Sizes and token counts are the same."""
    exif_orientation: ExifOrientation = "apply"
    """`apply`: images are rotated according to their EXIF orientation, as viewers show them. `ignore`: they stay as
    stored (release). Token counts and packs are the same, since a rotation only exchanges the sides."""
    lookahead: int = 64
    """Window of the shuffled order from which the samples that fill a pack best are chosen; larger packs better."""

    balance_window: int = 1
    """Packs of an epoch are sorted by their attended pairs within windows of so many packs, so that those which ranks
    take in the same step cost alike; 1 = not sorted."""

    def __post_init__(self) -> None:
        for name in ("token_budget", "targets_per_sample", "lookahead", "balance_window"):
            check_whole(f"packing.{name}", getattr(self, name), minimum=1)
        for name in ("instruction_dropout", "vae_dropout", "vit_dropout"):
            check_number(f"packing.{name}", getattr(self, name), minimum=0, maximum=1)

    @classmethod
    def parsed(cls, settings: Any) -> PackingConfig:
        """From `data.packing` of a parsed recipe; None = the defaults."""
        values = {} if settings is None else settings.as_dict()
        for key in {"vae_resize", "vit_resize"} & values.keys():
            values[key] = ResizeLimits(**values[key])
        return cls(**values)

    def without_dropout(self) -> PackingConfig:
        """The same settings without dropout, for validation and prediction."""
        return dataclasses.replace(self, instruction_dropout=0.0, vae_dropout=0.0, vit_dropout=0.0)

    @classmethod
    def for_inference(
        cls, sequence_format: SequenceFormat, exif_orientation: ExifOrientation = "apply"
    ) -> PackingConfig:
        """The release's inference sizes (VAE 512..1024, ViT 224..980 from the resized VAE image), clamped to the
        model's position tables.
        """
        if sequence_format.layout.size_rule == "pixels":
            limits = ResizeLimits(max_size=2048, min_size=512)
            return cls(instruction_dropout=0.0, vae_resize=limits, vit_resize=limits, exif_orientation=exif_orientation)
        vae = min(1024, sequence_format.latent_positions_per_side * sequence_format.latent_stride)
        vit = min(980, sequence_format.vit_largest_side * sequence_format.vit_patch_size)
        return cls(
            instruction_dropout=0.0,
            vae_resize=ResizeLimits(max_size=vae, min_size=min(512, vae)),
            vit_resize=ResizeLimits(max_size=vit, min_size=min(224, vit)),
            vit_source="vae_resized",
            exif_orientation=exif_orientation,
        )

    def resizes(self, sequence_format: SequenceFormat, *, references: int = 1) -> tuple[ImageResize, ImageResize]:
        """The resizes of VAE images and of ViT images for a model, in a prompt of that many `references`."""
        fast, layout = self.pixels == "fast", sequence_format.layout
        vae, vit = self.vae_resize, self.vit_resize
        if layout.size_rule == "pixels":
            share = layout.shared_pixels / max(references, 1)
            return (
                PixelResize.within(vae, sequence_format.latent_stride, fast=fast),
                PixelResize.within(vit, sequence_format.vit_patch_size, fast=fast, at_most=share),
            )
        return (
            vae.with_stride(sequence_format.latent_stride, fast=fast),
            vit.with_stride(sequence_format.vit_patch_size, fast=fast),
        )

    def decode(self, data: bytes, sequence_format: SequenceFormat) -> Image.Image:
        """Decodes an image to RGB, at least as large as the resizes need it."""
        draft_for = self.resizes(sequence_format) if self.pixels == "fast" else ()
        return decode_rgb(data, exif_orientation=self.exif_orientation, draft_for=draft_for)

    def check(self, sequence_format: SequenceFormat) -> None:
        """Checks that the largest images fit the model's position tables.

        Raises:
            UserError: a limit is too large; names the setting and its maximum. Or a setting has no effect.
        """
        if sequence_format.layout.single_stream and (self.vae_dropout or self.vit_source != "original"):
            raise UserError(
                "packing.vae_dropout and packing.vit_source are of models that see each reference twice; this one sees "
                "it once: leave them out, and set vit_dropout"
            )
        vae, vit = self.resizes(sequence_format)
        for name, resize, table in (
            ("vae_resize", vae, sequence_format.latent_positions_per_side),
            ("vit_resize", vit, sequence_format.vit_largest_side),
        ):
            if round(resize.max_size / resize.stride) > table:
                raise UserError(
                    f"packing.{name}.max_size is {resize.max_size}, but this model has positions for {table} tokens "
                    f"of {resize.stride} pixels a side: set it to at most {table * resize.stride}"
                )


def sample_layout(
    entry: IndexEntry, sequence_format: SequenceFormat, tokenizer: Tokenizer, config: PackingConfig
) -> tuple[int, ...]:
    """Length of every split of a sample in tokens, before dropout, from the index alone."""
    vae, vit = config.resizes(sequence_format, references=len(entry.references))
    references = [
        (_tokens(vae.grid(*size)), _tokens(vit.grid(*_vit_original(size, vae, config)))) for size in entry.references
    ]
    targets = [] if entry.target is None else [_tokens(vae.grid(*entry.target))] * config.targets_per_sample
    text, answer = tokenizer.encode(entry.instruction), tokenizer.encode(entry.answer) if entry.answer else None
    return sequence_format.layout.split_lengths(references, text, answer, targets)


def sample_pairs(
    entry: IndexEntry, sequence_format: SequenceFormat, tokenizer: Tokenizer, config: PackingConfig
) -> int:
    """Pairs of query and key in a sample's attention, from the index alone; text counts as if it were not causal."""
    layout = sample_layout(entry, sequence_format, tokenizer, config)
    num_targets = 0 if entry.target is None else config.targets_per_sample
    pairs = context = 0
    for length in layout[: len(layout) - num_targets]:
        context += length
        pairs += length * context
    return pairs + sum(length * (context + length) for length in layout[len(layout) - num_targets :])


def sample_length(
    entry: IndexEntry, sequence_format: SequenceFormat, tokenizer: Tokenizer, config: PackingConfig
) -> int:
    """Tokens of a sample before dropout, from the index alone; see `sample_layout`."""
    return sum(sample_layout(entry, sequence_format, tokenizer, config))


def _vit_original(size: tuple[int, int], vae: ImageResize, config: PackingConfig) -> tuple[int, int]:
    return vae.size(*size) if config.vit_source == "vae_resized" else size


def _tokens(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]


@dataclass(frozen=True)
class PreparedSample:
    """A sample that is decoded, transformed and has its random choices drawn."""

    key: str
    references: tuple[ReferenceImages, ...]
    ids: list[int] | None
    """Instruction ids; None = dropped."""
    target: Tensor | EncodedImage | None
    """(3, H, W) uint8."""
    timestep_logits: list[float]
    """One per target split."""
    answer: list[int] | None = None
    """Ids of the target text after the instruction; None = none."""
    names: Names = ()
    """See `PackedSequence.names`."""

    @property
    def layout(self) -> tuple[int, ...]:
        """Sizes that determine the split lengths, in order: samples of equal layout are batched in attention."""
        sizes: list[int] = []
        for reference in self.references:
            for image in (reference.vae, reference.vit):
                sizes += image.shape[-2:] if image is not None else (0, 0)
        sizes += [len(ids) if ids is not None else -1 for ids in (self.ids, self.answer)]
        sizes += self.target.shape[-2:] if self.target is not None else (0, 0)
        return tuple(sizes)

    def append_to(self, builder: SequenceBuilder) -> None:
        """Appends its splits in the order of the model's layout, the answer between instruction and target."""
        builder.begin_sample(self.key, names=self.names if self.ids is not None else ())
        layout = builder.sequence_format.layout
        if self.answer is None:
            layout.add_context(builder, self.references, self.ids)
        else:
            with_target = self.target is not None
            layout.add_answer(builder, self.references, self.ids, self.answer, with_target=with_target)
        if self.target is not None:
            builder.add_targets(self.target, self.timestep_logits)


def prepare_sample(
    sample: Sample,
    sequence_format: SequenceFormat,
    tokenizer: Tokenizer,
    config: PackingConfig,
    rng: np.random.Generator,
    encoded: Mapping[str, EncodedImage] | None = None,
) -> PreparedSample:
    """Decodes and transforms `sample`, and draws its dropouts and timestep logits (BAGEL: n ~ N(0, 1)) from `rng`.

    Args:
        sample: images still compressed.
        sequence_format: the model's.
        tokenizer: of the model.
        config: sizes and dropouts.
        rng: source of all draws.
        encoded: what takes the position of the VAE images, by number of the reference or "target"; None = nothing.

    Raises:
        BrokenSampleError: an image cannot be decoded, or the candidates do not match the references.
        UserError: a word is not in the tokenizer's vocabulary.
    """
    if sample.candidates is not None and len(sample.candidates) != len(sample.references):
        raise BrokenSampleError("wrong candidates", f"{sample.key}: candidates are not one list per reference")
    # All draws come first and their number does not depend on settings, so changing one setting changes only its draw.
    drop_text = rng.random() < config.instruction_dropout
    drop_images = rng.random((len(sample.references), 2)) < (config.vae_dropout, config.vit_dropout)
    mean, deviation = sequence_format.layout.noise_logits
    logits = (mean + deviation * rng.standard_normal(config.targets_per_sample)).tolist()
    drop_images[:, 0] |= bool(sample.answer and not sample.target)  # see `PromptLayout.add_answer`
    references = tuple(
        prepare_reference(
            config.decode(data, sequence_format),
            sequence_format,
            config,
            references=len(sample.references),
            drop=tuple(drop),
            candidates=None if sample.candidates is None else sample.candidates[number],
            encoded=None if encoded is None else encoded.get(str(number)),
        )
        for number, (data, drop) in enumerate(zip(sample.references, drop_images, strict=True))
    )
    return PreparedSample(
        key=sample.key,
        references=references,
        # An answer without its question would teach guessing.
        ids=None if drop_text and not sample.answer else tokenizer.encode(sample.instruction),
        target=_target(sample, sequence_format, config, encoded),
        timestep_logits=logits,
        answer=tokenizer.encode(sample.answer) if sample.answer else None,
        names=_names(sample, tokenizer),
    )


def _names(sample: Sample, tokenizer: Tokenizer) -> Names:
    """Of the metadata's `names`; data that knows no such field may use the key for anything."""
    names = sample.metadata.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        return ()
    return tokenizer.spans(sample.instruction, names)


def _target(
    sample: Sample,
    sequence_format: SequenceFormat,
    config: PackingConfig,
    encoded: Mapping[str, EncodedImage] | None,
) -> Tensor | EncodedImage | None:
    if not sample.target:
        return None
    if encoded is not None:
        return encoded["target"]
    return config.resizes(sequence_format)[0](config.decode(sample.target, sequence_format))


def add_sample(
    builder: SequenceBuilder,
    sample: Sample,
    tokenizer: Tokenizer,
    config: PackingConfig,
    rng: np.random.Generator,
) -> None:
    """Prepares `sample` (see `prepare_sample`) and appends it to `builder`; nothing is appended if that fails."""
    prepare_sample(sample, builder.sequence_format, tokenizer, config, rng).append_to(builder)


def prepare_reference(
    original: Image.Image,
    sequence_format: SequenceFormat,
    config: PackingConfig,
    *,
    references: int = 1,
    drop: tuple[bool, ...] = (False, False),
    candidates: tuple[Candidate, ...] | None = None,
    encoded: EncodedImage | None = None,
) -> ReferenceImages:
    """A reference image as tensors.

    Args:
        original: in RGB.
        sequence_format: the model's.
        config: limits of the sizes.
        references: of the same prompt.
        drop: whether to drop the VAE split and the ViT split.
        candidates: the subjects in the image, if annotated.
        encoded: in place of the VAE image.
    """
    vae, vit = config.resizes(sequence_format, references=references)
    drop_vae, drop_vit = drop[0] or sequence_format.layout.single_stream, drop[1]
    resized = vae.resize(original) if config.vit_source == "vae_resized" else None
    vae_image: Tensor | EncodedImage | None = None
    vit_tensor = None
    if not drop_vae:
        vae_image = encoded or (vae(original) if resized is None else to_tensor(resized))
    if not drop_vit:
        vit_tensor = vit(original if resized is None else resized, interleaved=True)
    targets = None if candidates is None else tuple(c.box for c in candidates if c.is_target)
    return ReferenceImages(vae_image, vit_tensor, targets)
