"""The three stages of Scone as a table (paper Sec. 4, docs/specification.md 6).

| module          | trains                                       | mask               | ablation arm                |
|-----------------|----------------------------------------------|--------------------|-----------------------------|
| Composition     | both experts, connector, vae2llm and llm2vae | no                 |                             |
| BridgeFormation | understanding expert, connector              | yes                | (b) no mask: `bridge: null` |
| BridgeGuidance  | both experts                                 | yes (release: off) | (a) direct: this one alone  |

Without separate experts (`DecoderConfig.separate_experts`) either expert is the whole decoder.
Data, steps and starting weights of each are in `experiments/*.yaml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scone_pl.model.config import BridgeConfig
from scone_pl.training.module import SconeModule
from scone_pl.training.parts import Part


class Composition(SconeModule):
    """Stage I: both experts learn to put the subjects of references with one subject each into one picture."""

    def __init__(
        self,
        init_from: str,
        trainable: Sequence[Part] = ("understanding", "generation", "connector", "latent_projections"),
        bridge: BridgeConfig | None = None,
        **kwargs: Any,
    ) -> None:
        """Arguments: see `SconeModule`."""
        super().__init__(init_from, trainable, bridge, **kwargs)


class BridgeFormation(SconeModule):
    """Stage II, step 1: under the mask, the understanding expert learns to mark which reference tokens are meant."""

    def __init__(
        self,
        init_from: str,
        trainable: Sequence[Part] = ("understanding", "connector"),
        bridge: BridgeConfig | None = BridgeConfig(),  # noqa: B008 (immutable)
        **kwargs: Any,
    ) -> None:
        """Arguments: see `SconeModule`."""
        super().__init__(init_from, trainable, bridge, **kwargs)


class BridgeGuidance(SconeModule):
    """Stage II, step 2: both experts train on, the bridge guiding the generation expert."""

    def __init__(
        self,
        init_from: str,
        trainable: Sequence[Part] = ("understanding", "generation"),
        bridge: BridgeConfig | None = BridgeConfig(),  # noqa: B008 (immutable)
        **kwargs: Any,
    ) -> None:
        """Arguments: see `SconeModule`."""
        super().__init__(init_from, trainable, bridge, **kwargs)
