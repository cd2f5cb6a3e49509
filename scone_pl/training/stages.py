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

from collections.abc import Callable, Sequence
from typing import Any

from scone_pl.model.config import BridgeConfig
from scone_pl.training.module import SconeModule
from scone_pl.training.parts import Part
from scone_pl.training.settings import StageSettings


def stage(trainable: Sequence[Part], bridge: BridgeConfig | None) -> Callable[[type[SconeModule]], type[SconeModule]]:
    """Gives a subclass of `SconeModule` the settings as constructor arguments, with these defaults."""
    defaults: dict[str, Any] = {"trainable": tuple(trainable), "bridge": bridge}

    def decorate(cls: type[SconeModule]) -> type[SconeModule]:
        def __init__(self: SconeModule, init_from: str, **settings: Any) -> None:  # noqa: N807 (it is the constructor)
            super(cls, self).__init__(StageSettings(init_from=str(init_from), **{**defaults, **settings}))

        __init__.__signature__ = StageSettings.signature(defaults)  # type: ignore[attr-defined] # read by jsonargparse
        __init__.__doc__ = StageSettings.__doc__
        cls.__init__ = __init__  # type: ignore[method-assign, assignment] # other arguments than the base class by intent
        return cls

    return decorate


@stage(trainable=("understanding", "generation", "connector", "latent_projections"), bridge=None)
class Composition(SconeModule):
    """Stage I: both experts learn to compose the subjects of references with one subject each in one image."""


@stage(trainable=("understanding", "connector"), bridge=BridgeConfig())
class BridgeFormation(SconeModule):
    """Stage II, step 1: under the mask, the understanding expert learns which reference tokens show the target."""


@stage(trainable=("understanding", "generation"), bridge=BridgeConfig())
class BridgeGuidance(SconeModule):
    """Stage II, step 2: both experts train on, the bridge guiding the generation expert."""
