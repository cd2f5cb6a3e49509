"""Questions about the images of an episode, with answers of a word or two: the mini twin of understanding data.

They use the names that instructions use by default (`the left star`, whatever `WorldConfig.naming` says), so that what
is learned about them serves generation.

- which: `the only star` -> `left`, and where a position is given already, `the left star` -> `green`: the target
  decides. Half of all; only these have boxes. Two references make it two names and two answers.
- name: `what the left` -> `star`
- count: `count star` -> `two`
- colour: `colour the only star` -> `green`, the nearest named hue of its first patch
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scone_pl.data.sample import Sample
from scone_pl.worlds.shapes.episode import SLOTS, Episode, Subject
from scone_pl.worlds.shapes.shapes import SHAPES

NUMBERS: tuple[str, ...] = ("none", "one", "two", "three", "four")
HUES: tuple[str, ...] = ("red", "yellow", "green", "cyan", "blue", "pink")
"""Names of hues 0, 60, ... 300 degrees."""
QUESTIONS: tuple[str, ...] = ("what", "count", "colour")
QUESTION_WORDS: tuple[str, ...] = (*QUESTIONS, *NUMBERS, *HUES, next(iter(SLOTS)))
"""Words that instructions lack."""


def to_question(episode: Episode, rng: np.random.Generator, shapes: Sequence[str] = SHAPES) -> Sample:
    """A question about the first reference of `episode`, its answer, and no target.

    Args:
        episode: any; `which` asks about all of its references, the others about the first.
        rng: chooses the question and whom it is about.
        shapes: that can be counted.
    """
    sample = replace(episode.to_sample(), target=b"")
    if rng.random() < 0.5:
        asked = [next(s for s in group if s.is_target) for group in episode.candidates]
        names = [_name(s, group) for s, group in zip(asked, episode.candidates, strict=True)]
        answers = [
            s.slot if "only" in name else hue_name(s.colours[0, 0]) for s, name in zip(asked, names, strict=True)
        ]
        return replace(sample, instruction=" and ".join(names), answer=" ".join(answers))
    group = episode.candidates[0]
    subject = group[int(rng.integers(len(group)))]
    shape = _shape_to_count(shapes, subject, rng)
    question, answer = {
        "what": (f"what the {subject.slot if len(group) > 1 else 'only'}", subject.shape),
        "count": (f"count {shape}", NUMBERS[sum(other.shape == shape for other in group)]),
        "colour": (f"colour {_name(subject, group)}", hue_name(subject.colours[0, 0])),
    }[QUESTIONS[int(rng.integers(len(QUESTIONS)))]]
    return replace(sample, references=sample.references[:1], instruction=question, answer=answer, candidates=None)


def _name(subject: Subject, group: Sequence[Subject]) -> str:
    """As instructions name it: by its shape if no other candidate has it, else by its position too."""
    alone = sum(other.shape == subject.shape for other in group) == 1
    return f"the {'only' if alone else subject.slot} {subject.shape}"


def hue_name(colour: np.ndarray) -> str:
    """The nearest of `HUES` for (3,) uint8 RGB."""
    hue = colorsys.rgb_to_hsv(*(colour / 255.0).tolist())[0]
    return HUES[round(hue * len(HUES)) % len(HUES)]


def _shape_to_count(shapes: Sequence[str], subject: Subject, rng: np.random.Generator) -> str:
    """Half of the time a shape that is there, else one that may not be."""
    others = [s for s in shapes if s != subject.shape]
    return subject.shape if rng.random() < 0.5 else others[int(rng.integers(len(others)))]
