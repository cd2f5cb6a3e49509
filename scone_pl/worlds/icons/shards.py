"""The world's training sets: understanding, plain generation, and the three subsets of Stage I and II."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scone_pl.data.seeding import generator
from scone_pl.evaluation.scores import SCONEEVAL_TASKS
from scone_pl.worlds.icons.contacts import ContactWorld, grounded
from scone_pl.worlds.icons.questions import to_question
from scone_pl.worlds.icons.world import IconsConfig, IconWorld
from scone_pl.worlds.shards import in_turn, write_set

if TYPE_CHECKING:
    from scone_pl.data.manifest import Manifest
    from scone_pl.data.sample import Sample
    from scone_pl.worlds.icons.episode import Episode

GENERATION = 3
"""Raised when the same settings come to give other episodes, so that old sets are not taken for new ones."""
_TO_IMAGE = 0.25
"""Fraction of the plain set without a reference."""


@dataclass(frozen=True)
class IconSet:
    """What one of the sets draws on."""

    stream: str
    """One of `world.STREAMS`."""
    tasks: tuple[str, ...]
    """Taken in turn; a task named twice comes twice as often."""
    form: Literal["drawing", "plain", "question", "contacts"] = "drawing"
    """drawing: the episode as it is. plain: the same, some without references. question: `questions.to_question`.
    contacts: with another target, see `contacts.py`."""


ICON_SETS: dict[str, IconSet] = {
    "questions": IconSet("questions", (SCONEEVAL_TASKS[0], *SCONEEVAL_TASKS[2:4], SCONEEVAL_TASKS[2]), "question"),
    "plain": IconSet("plain", SCONEEVAL_TASKS[:1], "plain"),
    "base_single": IconSet("base", SCONEEVAL_TASKS[:2]),
    "refined_single": IconSet("refined", SCONEEVAL_TASKS[:2]),
    "multi_candidate": IconSet("multi", SCONEEVAL_TASKS[2:]),
    "contacts": IconSet("multi", SCONEEVAL_TASKS[2:], "contacts"),
    "validation": IconSet("validation", SCONEEVAL_TASKS),
}


def icon_samples(icon_set: IconSet, samples: int, *, seed: int, config: IconsConfig) -> Iterator[Sample]:
    """The first `samples` samples of a set.

    Raises:
        UserError: contacts, and no scene has a ground.
    """
    contacts = icon_set.form == "contacts"
    world = (ContactWorld if contacts else IconWorld)(seed, grounded(config) if contacts else config, icon_set.stream)
    for number in range(samples):
        turn, index = in_turn(icon_set.tasks, number)
        yield _sample(icon_set.form, world, world.sample(icon_set.tasks[turn], index))


def _sample(form: str, world: IconWorld, episode: Episode) -> Sample:
    rng = generator(form, episode.key)
    if form == "question":
        other = world.atlas.names[int(world.pool[int(rng.integers(len(world.pool)))])]
        return to_question(episode, other, rng)
    sample = episode.to_sample(boxes=False)
    return replace(sample, references=()) if form == "plain" and rng.random() < _TO_IMAGE else sample


def write_icons(
    folder: str | Path,
    name: str,
    samples: int,
    *,
    seed: int = 0,
    config: IconsConfig | None = None,
    samples_per_shard: int = 5000,
    progress: bool = True,
) -> Manifest | None:
    """Writes the set of `ICON_SETS` called `name`; see `worlds.shards.write_set`."""
    icon_set, config = ICON_SETS[name], config or IconsConfig()
    settings = {
        "generation": GENERATION,
        "samples": samples,
        "seed": seed,
        **asdict(icon_set),
        "config": asdict(config),
    }
    drawn = icon_samples(icon_set, samples, seed=seed, config=config)
    return write_set(folder, drawn, settings, count=samples, samples_per_shard=samples_per_shard, progress=progress)
