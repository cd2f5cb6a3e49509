"""Examples for the page: references on disk, and an instruction for each candidate."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from scone_pl.analysis.samples import choose_samples
from scone_pl.data.decoding import decode_rgb
from scone_pl.data.sample import Sample
from scone_pl.worlds.shapes.episode import Episode
from scone_pl.worlds.shapes.world import World

_EPISODES = (("distinction_single_intra", 0), ("distinction_single_cross", 3), ("distinction_multi_intra", 1))
"""Of the mini-world's test stream, which no stage trains on."""
MAX_SCENES = 8
_MAX_LABEL = 60


@dataclass(frozen=True)
class Scene:
    """One example."""

    files: list[str]
    """Reference images."""
    choices: list[tuple[str, str]]
    """Per button its label and its instruction."""


def mini_scenes(folder: Path) -> list[Scene]:
    """Scenes of the mini-world, a button for each candidate or pair of candidates; the images go to `folder`."""
    world = World(seed=1, stream="test")
    scenes = []
    for task, index in _EPISODES:
        episode = world.sample(task, index)
        scenes.append(Scene(_write(episode.to_sample(), folder), _choices(episode)))
    return scenes


def _choices(episode: Episode) -> list[tuple[str, str]]:
    """An instruction for each combination of one candidate per reference."""
    by_place = len({subject.shape for subject in episode.candidates[0]}) == 1
    names = [
        [f"the {subject.slot if by_place else 'only'} {subject.shape}" for subject in group]
        for group in episode.candidates
    ]
    chosen = [" and ".join(one) for one in itertools.product(*names)]
    return [(one, f"draw {one} on {episode.background}") for one in chosen]


def scenes_of(data: str, folder: Path) -> list[Scene]:
    """The first samples of a data set, one button each.

    Raises:
        UserError: there is no such data set, or nothing to show in it.
    """
    samples = choose_samples(data, MAX_SCENES)
    return [Scene(_write(sample, folder), [(_label(sample.instruction), sample.instruction)]) for sample in samples]


def _label(instruction: str) -> str:
    return instruction if len(instruction) <= _MAX_LABEL else f"{instruction[: _MAX_LABEL - 3]}..."


def _write(sample: Sample, folder: Path) -> list[str]:
    files = []
    for content in sample.references:
        file = folder / f"reference-{len(list(folder.iterdir())):03d}.png"
        decode_rgb(content).save(file)
        files.append(str(file))
    return files
