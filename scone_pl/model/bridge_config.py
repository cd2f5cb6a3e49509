"""Settings of the understanding bridge; also importable from `scone_pl.model.config`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from scone_pl.errors import UserError
from scone_pl.ranges import check_number, check_whole

Pooling = Literal["mean", "max", "attention", "names"]


@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """The understanding bridge (paper Eq. 1-3, specification 5): which reference tokens target queries see."""

    source_layer: int = 8
    """Similarity is read from the output of this decoder layer, counted from 0 (paper: 8 of 28). Beyond the paper, -1:
    from what enters the decoder, the words' embeddings and the ViT's projected tokens."""
    first_masked_layer: int = 9
    """First layer in which target queries skip blocked tokens (paper and release: 9)."""
    last_masked_layer: int = 15
    """Last such layer, inclusive (paper: 15; the released code masks up to 16)."""
    threshold: float = 0.88
    """tau: a reference token is blocked if its similarity is below this (paper Table 6: 0.88 is best)."""
    quantile: float | None = None
    """Beyond the paper: tau is this quantile of the similarities of each reference image's ViT tokens, in (0, 1), in
    place of `threshold`; null = use `threshold`."""
    adaptive_threshold: Literal["otsu", "gap"] | None = None
    """Beyond the paper: tau is set for each reference image by the similarities of its own ViT tokens, in place of
    `threshold`. otsu: the split of the tokens in two with the largest variance between the parts; gap: the middle of
    the largest gap between sorted neighbours, the outer tenths left out."""
    pooling: Pooling = "mean"
    """How the cosines of a token with the instruction's tokens become its s. mean (paper, Eq. 1). Beyond it, max: the
    largest, so that one word is enough; attention: their mean weighted by softmax(cosine / 0.1); names: the largest of
    their means over the words of each name, of samples whose metadata has `names` (docs/bridge.md)."""
    rotation_seed: int | None = None
    """A control, beyond the paper: before they are compared, the instruction's states go through a fixed random
    orthogonal map of this seed, so that s starts without the alignment that the weights have; null = no map."""
    oracle: bool = False
    """A control, beyond the paper: instead of a similarity, s is 1 for reference tokens whose centre lies in the box of
    a target subject and 0 for others, each token on its own grid. Samples need `candidates`. Nothing is read from a
    layer, so the mask may begin before the source layer."""
    threshold_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which s and tau are compared. bfloat16: both are rounded to it first, as the release does, so that 0.88 acts
    as 0.87695; needs mode hard and no `quantile`."""
    mode: Literal["hard", "soft"] = "hard"
    """hard (paper): blocked tokens get -inf. soft, beyond the paper: target queries' logits of a reference token get
    log sigmoid((s - tau) / `temperature`), which passes a gradient to s."""
    temperature: float = 0.05
    """See `mode`."""
    apply_mask: bool = True
    """False: similarity is only measured, nothing is hidden (monitoring; the alignment term before Stage II)."""
    hide_references_early: bool = False
    """Beyond the paper: up to and including the source layer target queries see no reference token at all, so that
    nothing of a distractor is copied before the mask exists. Needed by small models (experiments/mini)."""
    drop_blocked: bool = False
    """Beyond the paper: after the source layer blocked tokens leave the network. No query of any kind sees them, no
    later layer computes them, no cache holds them; `first_masked_layer` and `last_masked_layer` then have no effect.
    Needs mode hard and `apply_mask`."""

    def __post_init__(self) -> None:
        for name in ("source_layer", "first_masked_layer", "last_masked_layer"):
            check_whole(f"bridge.{name}", getattr(self, name), minimum=-(name == "source_layer"), maximum=10_000)
        check_number("bridge.threshold", self.threshold, minimum=-1e6, maximum=1e6)
        check_number("bridge.temperature", self.temperature, above=0, maximum=1e6)
        if self.quantile is not None:
            check_number("bridge.quantile", self.quantile, above=0, below=1)
        if self.rotation_seed is not None:
            check_whole("bridge.rotation_seed", self.rotation_seed, maximum=2**63 - 1)
        behind = 0 if self._masks_from_the_start else self.source_layer + 1
        if not behind <= self.first_masked_layer <= self.last_masked_layer:
            raise UserError(
                "the bridge needs -1 <= source_layer < first_masked_layer <= last_masked_layer, got "
                f"{self.source_layer}, {self.first_masked_layer}, {self.last_masked_layer}"
            )
        for name, known in (("adaptive_threshold", ("otsu", "gap", None)), ("pooling", get_args(Pooling))):
            if (given := getattr(self, name)) not in known:
                raise UserError(f"bridge.{name} is {given!r}; choose from {', '.join(map(str, known))}")
        if self.quantile is not None and self.adaptive_threshold is not None:
            raise UserError("bridge.quantile and bridge.adaptive_threshold both set the threshold; leave one out")
        by_image = self.quantile is not None or self.adaptive_threshold is not None
        if self.threshold_dtype == "bfloat16" and (self.mode != "hard" or by_image):
            raise UserError(
                "bridge.threshold_dtype bfloat16 needs bridge.mode hard, no bridge.quantile and no "
                "bridge.adaptive_threshold"
            )
        if self.oracle:
            self._check_oracle()
        if self.drop_blocked and not (self.mode == "hard" and self.apply_mask):
            raise UserError(
                "bridge.drop_blocked needs bridge.mode hard and bridge.apply_mask true, got "
                f"{self.mode} and {str(self.apply_mask).lower()}"
            )

    @property
    def _masks_from_the_start(self) -> bool:
        return self.oracle and not (self.hide_references_early or self.drop_blocked)

    def _check_oracle(self) -> None:
        of_similarity = {
            "quantile": None, "adaptive_threshold": None, "pooling": "mean", "rotation_seed": None,
            "threshold_dtype": "float32", "apply_mask": True,
        }  # fmt: skip
        if others := [name for name, value in of_similarity.items() if getattr(self, name) != value]:
            raise UserError(f"bridge.oracle is a mask of boxes and takes no bridge.{others[0]}; leave it out")
        if not 0 < self.threshold <= 1:
            raise UserError(f"bridge.threshold is {self.threshold}; bridge.oracle needs one over 0 and up to 1")

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Fields that differ from their defaults, but that the other fields leave without effect."""
        unused = {
            "temperature": self.mode == "hard",
            "threshold": self.quantile is not None
            or self.adaptive_threshold is not None
            or (self.oracle and self.mode == "hard"),
            "source_layer": self._masks_from_the_start,
            "first_masked_layer": self.drop_blocked or not self.apply_mask,
            "last_masked_layer": self.drop_blocked or not self.apply_mask,
            "hide_references_early": not self.apply_mask or self.source_layer < 0,
        }
        defaults = {entry.name: entry.default for entry in fields(self)}
        return tuple(name for name, idle in unused.items() if idle and getattr(self, name) != defaults[name])

    def masks_layer(self, layer: int) -> bool:
        """Whether target queries skip blocked tokens, or weight them down (`mode`), in decoder layer `layer`."""
        return self.apply_mask and self.first_masked_layer <= layer <= self.last_masked_layer

    def hides_references_in(self, layer: int) -> bool:
        """Whether target queries see no reference token at all in decoder layer `layer`."""
        return self.apply_mask and self.hide_references_early and layer <= self.source_layer
