"""From a packed sequence back to the prompts in it, so that whatever trains can also be sampled."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from scone_pl.generation.sampler import Prompt
from scone_pl.model.sequence import PackedSequence, SplitKind


def prompts_of(pack: PackedSequence) -> list[Prompt]:
    """References, instruction and picture size of every sample; each must have a target, whose size counts."""
    vit_images = _vit_images(pack)
    text_row = pack.text_index.cpu()
    prompts = []
    for splits in pack.by_sample:
        vae = {s.image: pack.images[s.pixels] for s in splits if s.kind == SplitKind.VAE}  # type: ignore[index]
        references = tuple(
            (vae[s.image], vit_images[s.start]) for s in splits if s.kind == SplitKind.VIT and s.image in vae
        )
        text_ids: tuple[int, ...] = ()
        for split in splits:
            if split.kind == SplitKind.TEXT:
                inside = (text_row > split.start) & (text_row < split.stop - 1)
                text_ids = tuple(pack.text_ids.cpu()[inside].tolist())
        height, width = target_image(pack, splits[-1].sample).shape[-2:]
        prompts.append(Prompt(references, text_ids, (height, width)))
    return prompts


def target_image(pack: PackedSequence, sample: int) -> Tensor:
    """(3, H, W) in [-1, 1]: the clean target of a sample."""
    split = pack.by_sample[sample][-1]
    if split.kind != SplitKind.TARGET or split.pixels is None:
        raise ValueError(f"sample {sample} of the pack has no target")
    return pack.images[split.pixels]


def _vit_images(pack: PackedSequence) -> dict[int, Tensor]:
    """Start of a ViT split -> its image (3, H, W)."""
    splits = pack.splits_of(SplitKind.VIT)
    patches = pack.vit_patches.split([len(s.content) for s in splits])
    side = round((pack.vit_patches.shape[1] // 3) ** 0.5)
    return {
        s.start: rearrange(p, "(r c) (p q ch) -> ch (r p) (c q)", r=s.grid[0], p=side, q=side)  # type: ignore[index]
        for s, p in zip(splits, patches, strict=True)
    }
