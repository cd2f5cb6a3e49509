"""Labelled images: rendered answers with one known fault each, by which the judge's error rates are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scone_pl.data.seeding import generator
from scone_pl.markdown import markdown_table
from scone_pl.progress import track
from scone_pl.worlds.icons.atlas import IDENTITIES
from scone_pl.worlds.icons.episode import Episode, Look, Subject, draw_image
from scone_pl.worlds.icons.hues import HUES

Answer = Callable[[Episode], np.ndarray]
"""(H, W, 3) from 0 to 255 that answers an episode."""


@dataclass(frozen=True)
class Fault:
    """One way to answer."""

    expected: str
    """The verdict that people would give, a key of `worlds.episode.Failure`."""
    answer: Answer
    chosen: bool | None = True
    """Whether the target is the candidate that is drawn; None = neither or both."""
    distinction: bool = False
    """Needs distractors."""
    single: bool = False
    """Needs a lone reference."""

    def applies(self, task: str) -> bool:
        """To a task."""
        return (not self.distinction or task.startswith("distinction")) and (not self.single or "single" in task)


def drawn(episode: Episode, subjects: Sequence[Subject]) -> np.ndarray:
    """`subjects` in the scene of the target."""
    placed = [subject.placed(episode.atlas, episode.canvas) for subject in subjects]
    return draw_image(placed, episode.scene.draw(), episode.atlas).astype(float)


def distractors(episode: Episode) -> list[Subject]:
    """A distractor in the place of each target subject."""
    others = [next(s for s in group if not s.is_target) for group in episode.candidates]
    return [replace(a, look=o.look, view=o.other_view) for a, o in zip(episode.asked, others, strict=True)]


def _shifted(episode: Episode) -> np.ndarray:
    return drawn(episode, [replace(a, centre=a.centre + 3, base=a.base - 2) for a in episode.asked])


def _pale(episode: Episode) -> np.ndarray:
    pale: np.ndarray = 0.6 * episode.target + 0.4 * episode.scene.draw()
    return pale


def _blurred(episode: Episode, times: int = 1) -> np.ndarray:
    image, side = episode.target.astype(float), episode.canvas
    for _ in range(times):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        image = sum((padded[y : y + side, x : x + side] for y in range(3) for x in range(3)), np.zeros(())) / 9
    noisy: np.ndarray = image + generator("noise", episode.key).normal(0, 12, image.shape)
    return noisy


def _half(episode: Episode) -> np.ndarray:
    mixed: np.ndarray = 0.5 * episode.target + 0.5 * drawn(episode, distractors(episode))
    return mixed


def _both(episode: Episode) -> np.ndarray:
    side = episode.canvas
    pair = zip((*episode.asked, *distractors(episode)), (side / 4, 3 * side / 4), strict=True)
    return drawn(episode, [replace(subject, centre=x, scale=0.8) for subject, x in pair])


def _other_identity(episode: Episode) -> np.ndarray:
    """The target's name in the other identity and a hue that no candidate has."""
    taken = {s.look.hue for group in episode.candidates for s in group}
    hue = next(h for h in HUES if h not in taken)
    looks = [
        replace(a.look, identity=next(i for i in IDENTITIES if i != a.look.identity), hue=hue) for a in episode.asked
    ]
    pairs = zip(episode.asked, looks, strict=True)
    return drawn(episode, [replace(a, look=look, view=IDENTITIES[look.identity][0]) for a, look in pairs])


def _another_episode(episode: Episode) -> np.ndarray:
    """Looks that have nothing to do with the episode, where its target subjects should be."""
    taken = {s.look.index for group in episode.candidates for s in group}
    free = [i for i in episode.atlas.order if i not in taken]
    rng = generator("another", episode.key)
    others = []
    for asked in episode.asked:
        index, identity, hue = (
            free[int(rng.integers(len(free)))],
            str(rng.choice(list(IDENTITIES))),
            str(rng.choice(HUES)),
        )
        others.append(replace(asked, look=Look(index, identity, hue), view=IDENTITIES[identity][0]))
    return drawn(episode, others)


FAULTS: dict[str, Fault] = {
    "the target": Fault("none", lambda e: e.target),
    "3 and 2 pixels off": Fault("none", _shifted),
    "at 60 % of its contrast": Fault("none", _pale),
    "blurred over 3 x 3 pixels, noise of 12": Fault("none", _blurred),
    "blurred three times, noise of 12": Fault("none", lambda e: _blurred(e, 3)),
    "distractors": Fault("wrong_subject", lambda e: drawn(e, distractors(e)), False, distinction=True),
    "half target, half distractor": Fault("blending", _half, None, distinction=True),
    "target and distractor": Fault("redundancy", _both, None, distinction=True, single=True),
    "the empty scene": Fault("omission", lambda e: e.scene.draw(), None),
    "other identity": Fault("distorted", _other_identity, None),
    "another episode": Fault("distorted", _another_episode, None),
}
"""By what is drawn."""


def verdicts(episodes: Sequence[Episode], *, progress: bool = False) -> dict[str, dict[str, Any]]:
    """Per fault: expected verdict, number of images, verdicts given, and fractions of references whose target is chosen
    (nan without a choice) and of images called plausible where that is defined.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, fault in track(FAULTS.items(), "judging", len(FAULTS), unit="faults", show=progress):
        apt = [e for e in episodes if fault.applies(e.task)]
        given = [e.judge(fault.answer(e).round().clip(0, 255).astype(np.uint8)) for e in apt]
        records = [v.record(e.task, e.key) for v, e in zip(given, apt, strict=True)]
        choices = [record["choice"] for record in records if "choice" in record]
        rows[name] = {
            "expected": fault.expected,
            "chosen": fault.chosen,
            "images": len(apt),
            "verdicts": dict(Counter(record["failure"] for record in records).most_common()),
            "choice": float(np.mean(choices)) if choices else None,
        }
    return rows


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Of `verdicts`, as Markdown."""
    lines = []
    for name, row in rows.items():
        right = row["verdicts"].get(row["expected"], 0) / row["images"]
        given = ", ".join(f"{verdict.replace('_', ' ')} {count}" for verdict, count in row["verdicts"].items())
        chosen = "-" if row["choice"] is None else f"{row['choice']:.0%}"
        lines.append([name, str(row["images"]), row["expected"].replace("_", " "), f"{right:.0%}", given, chosen])
    return markdown_table(["drawn", "images", "right verdict", "given", "verdicts", "target chosen"], lines)
