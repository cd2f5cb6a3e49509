"""The contexts of guidance, run through the model once: references and instruction as keys and values.

Prompts of equal layout go side by side and share one `ContextCache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from scone_pl.model.attention import ATTENTION_BACKENDS
from scone_pl.model.boxes import Box
from scone_pl.model.bridge import BridgeState, Remaining
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import BridgeConfig
from scone_pl.model.layout import ReferenceImages
from scone_pl.model.network import Network
from scone_pl.model.sequence import Names, PackedSequence, SequenceFormat
from scone_pl.sampling.cache import ContextCache, ContextSpan, DroppingCache, RecordingPlan
from scone_pl.sampling.settings import AttentionRebalancingConfig


@dataclass(frozen=True)
class Prompt:
    """Model inputs of one image to generate."""

    references: tuple[tuple[Tensor, Tensor], ...]
    """Per reference image its VAE and ViT version, each (3, H, W) in [-1, 1]."""
    text_ids: tuple[int, ...] | None
    """Token ids of the instruction, without begin and end; None = no instruction. An empty one still has begin and end,
    as in training and in the release."""
    size: tuple[int, int]
    """Height and width of the target in pixels."""
    negative_ids: tuple[int, ...] | None = None
    """Token ids of the negative prompt, without begin and end; None = guidance starts from no instruction."""
    targets: tuple[tuple[Box, ...] | None, ...] = ()
    """Per reference image `Split.targets`; empty = all unlabelled."""
    names: Names = ()
    """See `PackedSequence.names`."""

    @property
    def layout(self) -> tuple[object, ...]:
        """Prompts that agree in it have equally many tokens everywhere."""
        shapes = tuple((tuple(vae.shape), tuple(vit.shape)) for vae, vit in self.references)
        negative_length = -1 if self.negative_ids is None else len(self.negative_ids)
        return (self.size, len(self.references), self.text_length, shapes, negative_length)

    @property
    def negative(self) -> Prompt:
        """The prompt with its negative instruction in place of its own."""
        return Prompt(self.references, self.negative_ids, self.size)

    def grid(self, sequence_format: SequenceFormat) -> tuple[int, int]:
        """Rows and columns of the target's tokens."""
        return self.size[0] // sequence_format.latent_stride, self.size[1] // sequence_format.latent_stride

    @property
    def text_length(self) -> int:
        """Tokens of the instruction, begin and end included; 0 without one."""
        return 0 if self.text_ids is None else len(self.text_ids) + 2


@dataclass(frozen=True)
class Contexts:
    """The prefilled contexts of some prompts, which are sorted by layout."""

    prompts: Sequence[Prompt]
    pack: PackedSequence
    caches: Sequence[ContextCache | DroppingCache]
    """One a run of prompts of equal layout."""
    bridge: BridgeState | None
    next_position: list[int]
    """Per prompt the RoPE position of its target."""
    prompt_of_sample: list[int]
    """Per sample of the pack the index of its prompt; a prompt without tokens here has no sample."""

    @property
    def positions_without_text(self) -> list[int]:
        """`next_position` in the context without instruction."""
        return [p - prompt.text_length for p, prompt in zip(self.next_position, self.prompts, strict=True)]

    def bridge_maps(self) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """Per prompt the similarity and blocked maps, (rows, columns) over what its targets see of its references."""
        if self.bridge is None:
            return [((), ()) for _ in self.prompts]
        maps: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in self.prompts]
        for split in self.pack.mapped_splits:
            inside = slice(split.content.start, split.content.stop)
            for collected, values in zip(
                maps[self.prompt_of_sample[split.sample]], (self.bridge.similarity, self.bridge.blocked), strict=True
            ):
                collected.append(values[inside].view(split.grid))  # type: ignore[arg-type]  # images have grids
        return [(tuple(similarity), tuple(blocked)) for similarity, blocked in maps]


def prefill(
    model: Network,
    sequence_format: SequenceFormat,
    prompts: Sequence[Prompt],
    bridge: BridgeConfig | None,
    *,
    references: bool,
    text: bool = True,
    hide_blocked: bool = True,
    rebalancing: AttentionRebalancingConfig | None = None,
) -> Contexts:
    """Runs the contexts of all prompts once, keeping keys and values.

    Args:
        model: in eval mode.
        sequence_format: of the model, with its special tokens.
        prompts: sorted by `Prompt.layout`.
        bridge: what to hide from the targets; None = nothing.
        references: False = without.
        text: False = without instructions.
        hide_blocked: False = as in the context without instruction: the bridge hides nothing after its source layer.
        rebalancing: of the targets' attention to references; not together with `bridge`.
    """
    pack, positions, prompt_of_sample = pack_contexts(sequence_format, prompts, references=references, text=text)
    pack = pack.to(model.device)
    record = RecordingPlan(ATTENTION_BACKENDS[model.attention](pack))  # type: ignore[call-arg]  # classes of one signature
    state = None
    if len(pack):
        times = torch.zeros(len(pack.latent_splits), device=pack.device)
        state = model(pack, model.encode_images(pack), times, bridge if hide_blocked else None, record).bridge
    blocked, bias = (None, None) if state is None else (state.blocked, state.bias)
    if bridge is not None and not hide_blocked:
        blocked = torch.zeros(len(pack), dtype=torch.bool, device=pack.device)
    reference = pack.reference_tokens
    frame = sequence_format.layout.frame
    whole = [
        ContextCache(span, num_own, reference, blocked, bridge, bias, frame=frame, rebalancing=rebalancing)
        for span, num_own in _spans(sequence_format, prompts, pack, prompt_of_sample)
    ]
    caches: Sequence[ContextCache | DroppingCache] = whole
    if bridge is not None and state is not None and state.remaining is not None:
        spans = _spans(sequence_format, prompts, state.remaining.pack, prompt_of_sample)
        caches = _dropping(whole, spans, state.remaining, bridge.source_layer)
    # Layer by layer, so that what was recorded and what the caches hold are never both there in full.
    for layer in list(record.keys):
        for cache in caches:
            cache.fill(record, layer)
        del record.keys[layer], record.values[layer]
    return Contexts(prompts, pack, caches, state, positions, prompt_of_sample)


def pack_contexts(
    sequence_format: SequenceFormat, prompts: Sequence[Prompt], *, references: bool = True, text: bool = True
) -> tuple[PackedSequence, list[int], list[int]]:
    """References and instructions as one packed sequence.

    Args:
        sequence_format: of the model, with its special tokens.
        prompts: a sample each, unless there is nothing to pack.
        references: False = without.
        text: False = without instructions.

    Returns:
        The pack, and `Contexts.next_position` and `Contexts.prompt_of_sample`.
    """
    builder, layout = SequenceBuilder(sequence_format), sequence_format.layout
    positions: list[int] = []
    prompt_of_sample: list[int] = []
    for number, prompt in enumerate(prompts):
        shown: list[ReferenceImages] = []
        if references:
            targets = prompt.targets or (None,) * len(prompt.references)
            shown = [ReferenceImages(*images, of) for images, of in zip(prompt.references, targets, strict=True)]
        ids = list(prompt.text_ids) if text and prompt.text_ids is not None else None
        if not shown and not layout.context_words(0, ids)[0]:
            positions.append(0)
            continue
        builder.begin_sample(names=prompt.names if ids is not None else ())
        prompt_of_sample.append(number)
        layout.add_context(builder, shown, ids)
        positions.append(builder.position)
    return builder.build(), positions, prompt_of_sample


def _dropping(
    whole: list[ContextCache], spans: list[tuple[ContextSpan, int]], remaining: Remaining, source_layer: int
) -> list[DroppingCache]:
    """`whole` for the layers up to `source_layer`, caches over `spans` of what remains for those after it."""
    nobody = torch.zeros(len(remaining.pack), dtype=torch.bool, device=remaining.pack.device)
    filler = None if remaining.present is None else ~remaining.present
    return [
        DroppingCache(cache, ContextCache(span, num_own, nobody, filler=filler), source_layer)
        for cache, (span, num_own) in zip(whole, spans, strict=True)
    ]


def _spans(
    sequence_format: SequenceFormat, prompts: Sequence[Prompt], pack: PackedSequence, prompt_of_sample: list[int]
) -> list[tuple[ContextSpan, int]]:
    """Runs of prompts of equal layout, and the length of their targets with frame.

    Args:
        sequence_format: of the model.
        prompts: sorted by layout.
        pack: their contexts.
        prompt_of_sample: per sample of the pack the index of its prompt.
    """
    lengths = [0] * len(prompts)
    for split in pack.splits:
        lengths[prompt_of_sample[split.sample]] += split.length
    spans, start, number = [], 0, 0
    for _, run in groupby(prompts, key=lambda prompt: prompt.layout):
        alike = list(run)
        rows, columns = alike[0].grid(sequence_format)
        layout = sequence_format.layout
        span = ContextSpan(start, len(alike), lengths[number], alike[0].text_length if layout.text_at_end else 0)
        spans.append((span, rows * columns + 2 * layout.frame))
        start, number = start + len(alike) * span.length, number + len(alike)
    return spans
