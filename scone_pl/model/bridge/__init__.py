"""The understanding bridge (paper Eq. 1-3, docs/specification.md 5) and nothing else.

After decoder layer e, per sample and reference image: s_i = mean over the instruction tokens j of
cosine(h_vit_i, h_text_j) for each ViT token i; the grid of s is resized to the grid of the image's VAE tokens. A
reference token with s below the threshold is blocked for target queries in the masked layers.

Beyond the paper (`BridgeConfig`): tau as a quantile of s in each image, and in place of -inf a soft bias
log sigmoid((s_i - tau) / T), through which the loss of the target image trains s; blocked tokens may leave the network
altogether (`dropping.py`).
"""

from scone_pl.model.bridge.dropping import Remaining, kept_lengths, shortened
from scone_pl.model.bridge.schedule import BridgeSchedule, LayerSchedule
from scone_pl.model.bridge.similarity import Similarity
from scone_pl.model.bridge.state import Bridge, BridgeState

__all__ = [
    "Bridge",
    "BridgeSchedule",
    "BridgeState",
    "LayerSchedule",
    "Remaining",
    "Similarity",
    "kept_lengths",
    "shortened",
]
