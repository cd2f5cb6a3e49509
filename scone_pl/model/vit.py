"""SigLIP vision transformer over packed patches of images of any size (NaViT style), in the published key layout.

Shapes: V patches of all images together, D hidden size, H heads, P values a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scone_pl.model.config import ViTConfig


class ViTEmbeddings(nn.Module):
    """Patch embedding as a linear map, plus learned positions."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.positions_per_side**2, config.hidden_size)

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        """(V, P), (V,) -> (V, D)."""
        return self.patch_embedding(patches) + self.position_embedding(positions)


class ViTAttention(nn.Module):
    """Full attention inside each image."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, batches: Sequence[tuple[int, int]]) -> Tensor:
        """`x` (V, D); `batches` are (images, patches an image) of runs of equally large images."""
        sizes = [images * patches for images, patches in batches]
        heads = []
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            runs = projection(x).split(sizes)
            heads.append(
                [run.view(*batch, self.num_heads, -1).transpose(1, 2) for run, batch in zip(runs, batches, strict=True)]
            )
        attended = [F.scaled_dot_product_attention(*qkv) for qkv in zip(*heads, strict=True)]
        return self.out_proj(torch.cat([run.transpose(1, 2).flatten(0, 1).flatten(1) for run in attended]))


class ViTMLP(nn.Module):
    """Two layers with tanh-GELU."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class ViTLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = ViTAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ViTMLP(config)

    def forward(self, x: Tensor, batches: Sequence[tuple[int, int]]) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), batches)
        return x + self.mlp(self.layer_norm2(x))


class ViTEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(config.num_layers))


class VisionTransformer(nn.Module):
    """Patches of all images of a pack -> features."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.embeddings = ViTEmbeddings(config)
        self.encoder = ViTEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
        """Encodes every image by itself.

        Args:
            patches: (V, P), see `PackedSequence.vit_patches`.
            positions: (V,) rows of the position table.
            lengths: patches of each image; they add up to V.

        Returns:
            (V, D) features.
        """
        batches = [(len(list(run)), length) for length, run in groupby(lengths)]
        x = self.embeddings(patches.to(self.embeddings.patch_embedding.weight.dtype), positions)
        for layer in self.encoder.layers:
            x = layer(x, batches)
        return self.post_layernorm(x)


class SiglipModel(nn.Module):
    """Gives the keys their published prefix `vision_model`."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(config)

    def forward(self, patches: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
        return self.vision_model(patches, positions, lengths)
