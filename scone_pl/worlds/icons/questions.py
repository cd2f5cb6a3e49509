"""Understanding data: captions, and questions about one image or several, answered in words. No boxes.

- caption: `describe` -> `the red dog and the cat on the grass`, all subjects from left to right
- what: `what is at the left` -> `red dog`; where: `where is the dog` -> `left`; colour: `what colour is the dog`
- many: `how many dog are there` -> `two`; there: `is there a dog` -> `yes`, half of the time about another subject
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scone_pl.data.sample import Sample
from scone_pl.worlds.icons.episode import Episode, Subject
from scone_pl.worlds.icons.hues import NATURAL
from scone_pl.worlds.icons.language import NUMBERS
from scone_pl.worlds.icons.scenes import PHRASES

FORMS: tuple[str, ...] = ("caption", "what", "where", "colour", "many", "there")


def to_question(episode: Episode, other: str, rng: np.random.Generator) -> Sample:
    """A question about one reference of `episode` and its answer, without a target.

    Args:
        episode: any.
        other: a name that may not be in it.
        rng: chooses the question and whom it is about.
    """
    number = int(rng.integers(len(episode.candidates)))
    group, scene = episode.candidates[number], episode.reference_scenes[number]
    question, answer = _asked(FORMS[int(rng.integers(len(FORMS)))], episode, group, scene.name, other, rng)
    sample = episode.to_sample(boxes=False)
    return replace(
        sample, references=sample.references[number : number + 1], instruction=question, answer=answer, target=b""
    )


def _asked(
    form: str, episode: Episode, group: tuple[Subject, ...], scene: str, other: str, rng: np.random.Generator
) -> tuple[str, str]:
    subject = group[int(rng.integers(len(group)))]
    name, alone = episode.name_of(subject), len(group) == 1
    unique = sum(episode.name_of(s) == name for s in group) == 1
    described = f"the {name}" if unique else f"the {subject.where} {name}"
    if form == "what" and not alone:
        return f"what is at the {subject.where}", _with_hue(name, subject)
    if form == "where" and not alone and (unique or subject.look.hue != NATURAL):
        return f"where is the {name if unique else _with_hue(name, subject)}", subject.where
    if form == "colour":
        return f"what colour is {described}", subject.look.hue
    if form in ("many", "there"):
        name = other if rng.random() < 0.5 else name
        count = sum(episode.name_of(s) == name for s in group)
        if form == "there":
            return f"is there a {name}", "yes" if count else "no"
        return f"how many {name} are there", NUMBERS[count]
    return "describe", caption(episode, group, scene)


def caption(episode: Episode, group: tuple[Subject, ...], scene: str) -> str:
    """All subjects of one image from left to right, and its scene."""
    names = [f"the {_with_hue(episode.name_of(s), s)}" for s in sorted(group, key=lambda s: s.centre)]
    return f"{' and '.join(names)} {PHRASES[scene]}"


def _with_hue(name: str, subject: Subject) -> str:
    return name if subject.look.hue == NATURAL else f"{subject.look.hue} {name}"
