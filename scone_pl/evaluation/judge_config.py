"""Settings of the judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from scone_pl.errors import UserError
from scone_pl.ranges import check_whole
from scone_pl.vlm.endpoint import MAX_CALLS, OPENAI, EndpointConfig


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


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(JudgeConfig):
    """`JudgeConfig` as typed: what is left out is the benchmark's own."""

    model: str | None = None  # type: ignore[assignment]  # narrower than the base's
    """The vision-language model; by default the one of the benchmark's published numbers."""
    parameters: dict[str, Any] | None = None  # type: ignore[assignment]  # narrower than the base's
    """Further fields of the request, such as temperature; by default those of the benchmark's published judge."""

    def resolved(self, published: Mapping[str, Any]) -> JudgeConfig:
        """With the settings of a published judge (`Benchmark.judge`) where nothing was typed.

        Raises:
            UserError: that judge is open, and no server for it was given.
        """
        typed = {f.name: getattr(self, f.name) for f in fields(self)}
        model = self.model or str(published["model"])
        if not self.model and "/" in model and self.base_url.rstrip("/") == OPENAI:
            raise UserError(
                f"the judge of this benchmark is {model}: give --judge.base_url of a server that has it (such as "
                "http://127.0.0.1:8000/v1), or --judge.model"
            )
        parameters = published.get("parameters", {}) if self.parameters is None else self.parameters
        return JudgeConfig(**{**typed, "model": model, "parameters": dict(parameters)})
