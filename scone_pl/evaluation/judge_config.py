"""Settings of the judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scone_pl.ranges import check_whole
from scone_pl.vlm.endpoint import MAX_CALLS, EndpointConfig


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(EndpointConfig):
    """Service, model, retry policy and questions of the judge."""

    max_answers: int = 3
    """Maximum answers to one question, if none can be parsed."""
    retry_failed: bool = True
    """Whether questions that failed in an earlier run are asked again."""
    scene_pf: bool = False
    """OmniContext: use the scene wording for PF of scene tasks (the published numbers do not)."""
    exif_orientation: Literal["apply", "ignore"] = "apply"
    """Whether EXIF orientations are applied: to images for the judge (the published code does), and in `evaluate` to
    the model's references (the published code does not)."""
    plausibility: bool = False
    """Whether to rate physical plausibility (PHY) too; it enters no other column."""
    prompts: str | None = None
    """Folder of prompt templates; null = the package's."""
    prices: str | None = None
    """YAML file of prices; null = the package's `prices.yaml`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("judge.max_answers", self.max_answers, minimum=1, maximum=MAX_CALLS)
