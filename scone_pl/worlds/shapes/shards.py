"""The mini-world as shard sets on disk, so that it is trained on like any other data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scone_pl.data.sample import Candidate
from scone_pl.data.seeding import generator
from scone_pl.worlds.shapes.episode import TASKS, Episode
from scone_pl.worlds.shapes.questions import to_question
from scone_pl.worlds.shapes.world import World, WorldConfig
from scone_pl.worlds.shards import in_turn, write_set

if TYPE_CHECKING:
    from scone_pl.data.manifest import Manifest
    from scone_pl.data.sample import Sample

GENERATION = 3
"""Raised when the same settings come to give other episodes, so that old sets are not taken for new ones."""
_NEWER: dict[str, Any] = {"worlds": (), "naming": "place"}
"""Settings that older sets lack, with the values by which those were made: not written, so that old sets are known."""


@dataclass(frozen=True)
class WorldSet:
    """What one of the training sets draws on."""

    stream: str
    """One of `world.STREAMS`."""
    tasks: tuple[str, ...]
    """Taken in turn; a task named twice comes twice as often."""
    form: Literal["drawing", "plain", "question"] = "drawing"
    """drawing: the episode as it is. plain: the same, a quarter of them without references (text to image). question:
    `questions.to_question`."""
    boxes: bool = True
    """Whether its samples tell which subjects the words mean."""
    worlds: tuple[Mapping[str, Any], ...] = ()
    """What each of `tasks` changes in the `WorldConfig`; empty = nothing."""

    def sample_of(self, episode: Episode, config: WorldConfig) -> Sample:
        """The episode as a sample of this set.

        In drawings the background counts as a target, so that the mask hides distractors only and what is left looks
        like a reference of Stage I. Not so elsewhere, where separating subjects from background is a step on the way to
        shapes. Lone subjects have no boxes: as every word refers to the whole image, all shapes would come to look
        alike (measured: an AUROC of 0.9 fell to 0.5 within 120 steps).
        """
        if self.form == "question":
            sample = to_question(episode, generator("question", episode.key), config.shapes)
        else:
            sample = episode.to_sample()
        if self.form == "plain" and generator("plain", episode.key).random() < 0.25:
            sample = replace(sample, references=(), candidates=())
        alone = len(episode.candidates[0]) == 1
        if sample.candidates is None or not self.boxes or (self.form == "question" and alone):
            return replace(sample, candidates=None)
        if self.form == "question":
            return sample
        return replace(sample, candidates=tuple((*group, *_background(group)) for group in sample.candidates))


def _background(group: Sequence[Candidate]) -> list[Candidate]:
    """What of an image is no subject, as a target: all around a lone subject, else above and below."""
    if len(group) == 1:
        boxes = [(0.0, 0.0, 1.0, 1.0)]
    else:
        top, bottom = min(c.box[1] for c in group), max(c.box[3] for c in group)
        boxes = [(0.0, 0.0, 1.0, top), (0.0, bottom, 1.0, 1.0)]
    return [Candidate(box=box, is_target=True, name="background") for box in boxes if box[1] < box[3]]


_WIDE: tuple[tuple[str, dict[str, Any]], ...] = (
    *((task, {"naming": naming}) for naming in ("colour", "size") for task in (TASKS[3], TASKS[5])),
    *((task, {"candidates": count}) for count in (3, 4) for task in TASKS[2:4]),
    *((task, {"references": count}) for count in (3, 4) for task in TASKS[4:]),
)
"""A third each: naming by colour and size, three and four candidates, three and four references. Together they show
every word of an instruction, and every place in references and targets, that `robustness` asks for."""

WORLD_SETS: dict[str, WorldSet] = {
    "questions": WorldSet("questions", (TASKS[0], TASKS[2], TASKS[3], TASKS[2]), "question"),
    "question_pairs": WorldSet("questions", TASKS[4:], "question"),
    "plain": WorldSet("plain", TASKS[:1], "plain", boxes=False),
    "base_single": WorldSet("base", TASKS[:2], boxes=False),
    "refined_single": WorldSet("refined", TASKS[:2], boxes=False),
    "multi_candidate": WorldSet("multi", TASKS[2:]),
    "multi_wide": WorldSet("wide", tuple(task for task, _ in _WIDE), worlds=tuple(change for _, change in _WIDE)),
    "validation": WorldSet("validation", TASKS),
}
"""The mini twins of what BAGEL was pretrained on (understanding, plain generation), of the three subsets of
Scone-S2I-57K (specification 6, 9), a set beyond the paper's (harder distinction), and one to watch training by."""


def world_samples(
    world_set: WorldSet, samples: int, *, seed: int = 0, config: WorldConfig | None = None
) -> Iterator[Sample]:
    """The first `samples` samples of a set, its tasks in turn."""
    config, tasks = config or WorldConfig(), world_set.tasks
    changes = world_set.worlds or ({},) * len(tasks)
    worlds = [World(seed, replace(config, **changes[turn]), stream=world_set.stream) for turn in range(len(tasks))]
    for number in range(samples):
        turn, index = in_turn(tasks, number)
        episode = worlds[turn].sample(tasks[turn], index)
        yield world_set.sample_of(episode, worlds[turn].config)


def _described(settings: WorldSet | WorldConfig) -> dict[str, Any]:
    """As written to `SETTINGS`, see `_NEWER`."""
    return {name: value for name, value in asdict(settings).items() if name not in _NEWER or value != _NEWER[name]}


def write_world(
    folder: str | Path,
    world_set: WorldSet,
    *,
    samples: int,
    seed: int = 0,
    config: WorldConfig | None = None,
    samples_per_shard: int = 5000,
    progress: bool = True,
) -> Manifest | None:
    """Writes a shard set of mini-world episodes, unless it is there already.

    Args:
        folder: where; created.
        world_set: what it draws on.
        samples: how many.
        seed: of the world.
        config: sizes and difficulty.
        samples_per_shard: samples in one tar file.
        progress: whether to show a progress bar.

    Returns:
        The manifest, or None if the folder already holds the same set, whole.

    Raises:
        UserError: the folder holds another set.
    """
    settings = {
        "generation": GENERATION,
        "samples": samples,
        "seed": seed,
        **_described(world_set),
        "config": _described(config or WorldConfig()),
    }
    drawn = world_samples(world_set, samples, seed=seed, config=config)
    return write_set(folder, drawn, settings, count=samples, samples_per_shard=samples_per_shard, progress=progress)
