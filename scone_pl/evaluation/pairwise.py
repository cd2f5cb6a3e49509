"""Comparisons of pairs of images in both orders, and Bradley-Terry ratings of the systems that made them.

Scores of small judges tie often, and the answer to a comparison depends on the order; so every pair is asked twice, and
a pair whose answers contradict each other is a tie.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark, Question
from scone_pl.evaluation.calls import Call, Judgement, Planner
from scone_pl.evaluation.folder import name_of_scores
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge import verdict_on
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.published import unique_names
from scone_pl.evaluation.templates import Templates
from scone_pl.markdown import markdown_table
from scone_pl.vlm.parsing import Score, UnusableAnswerError, answer_text, load_object
from scone_pl.vlm.store import AnswerStore

TEMPLATE, FIRST, SECOND = "pairwise", "first_image", "second_image"
RESAMPLES = 300
ELO_PER_UNIT = 400 / math.log(10)
MEAN_ELO = 1500.0
VIRTUAL = 0.5
"""Wins added to both sides of every pair, so that a system that always wins has a finite rating."""


@dataclass(frozen=True)
class System:
    """A folder of images."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Pair:
    """An item's images by two systems, asked about in both orders."""

    item: Item
    scoring: int
    first: str
    second: str
    calls: tuple[Call, Call]
    """With `first` first, and with `second` first."""


def systems_of(texts: Sequence[str]) -> list[System]:
    """Systems from `FOLDER` or `NAME=FOLDER`.

    Raises:
        UserError: fewer than two, or a folder that does not exist.
    """
    if len(texts) < 2:
        raise UserError("--pairwise: give at least two folders of images, as FOLDER or NAME=FOLDER")
    found = []
    for text in texts:
        name, equals, path = text.partition("=")
        folder = Path(path if equals else text)
        if not folder.is_dir():
            raise UserError(f"--pairwise {text}: no such folder; it must hold TASK/KEY.png")
        is_round = folder.name == "predictions" and folder.parent.name.startswith("round_")
        default = name_of_scores(folder.parents[1] / "scores.jsonl") if is_round else folder.resolve().name
        found.append((name if equals else default, folder))
    names = unique_names([name for name, _ in found])
    return [System(name, folder) for name, (_, folder) in zip(names, found, strict=True)]


def parse_winner(raw: str | None) -> Score:
    """1 or 2 for the better image, 0 for a tie, from `{"winner": 1, "reasoning": "..."}`.

    Raises:
        UnusableAnswerError: no such object, or another winner.
    """
    content = load_object(answer_text(raw))
    winner = content.get("winner")
    if isinstance(winner, str) and winner.strip() in ("0", "1", "2"):
        winner = int(winner)
    if isinstance(winner, bool) or winner not in (0, 1, 2):
        raise UnusableAnswerError("`winner` is not 0, 1 or 2")
    reason = content.get("reasoning", "")
    return Score(float(winner), reason if isinstance(reason, str) else "")


def plan_pairs(
    benchmark: Benchmark, items: Sequence[Item], systems: Sequence[System], config: JudgeConfig, scorings: int
) -> tuple[list[Pair], int]:
    """All pairs, and the number of those that lack an image."""
    templates = Templates.of(benchmark, config)
    planner, template = Planner(benchmark, config, templates), templates[TEMPLATE]
    pairs, missing = [], 0
    for scoring, item, (one, other) in itertools.product(
        range(1, scorings + 1), items, itertools.combinations(systems, 2)
    ):
        files = [system.folder / item.image_name for system in (one, other)]
        if not all(file.is_file() for file in files):
            missing += 1
            continue
        question = Question("PAIR", TEMPLATE, {"instruction": item.instruction}, parse_winner)
        calls = tuple(
            planner.call(question, template, item, dict(zip((FIRST, SECOND), order, strict=True)), 1, scoring)
            for order in (files, files[::-1])
        )
        pairs.append(Pair(item, scoring, one.name, other.name, calls))  # type: ignore[arg-type]  # two calls
    return pairs, missing


def judgements_of(pairs: Sequence[Pair]) -> list[Judgement]:
    """For `Judge.run`."""
    return [Judgement(pair.item, 1, pair.scoring, pair.calls) for pair in pairs]


def outcomes(pairs: Sequence[Pair], store: AnswerStore) -> list[dict[str, Any]]:
    """Per pair its systems and `winner`: a name, or null for a tie; pairs without both answers are left out."""
    found = []
    for pair in pairs:
        answers = [verdict_on(call, store).value for call in pair.calls]
        if None in answers:
            continue
        by_order = [
            {0: None, 1: names[0], 2: names[1]}[int(answer.value)]
            for answer, names in zip(answers, ((pair.first, pair.second), (pair.second, pair.first)), strict=True)
        ]
        found.append(
            {
                "task_type": pair.item.task_type,
                "key": pair.item.key,
                "scoring": pair.scoring,
                "systems": [pair.first, pair.second],
                "answers": [int(answer.value) for answer in answers],
                "winner": by_order[0] if by_order[0] == by_order[1] else None,
                "consistent": by_order[0] == by_order[1],
            }
        )
    return found


def ratings(results: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Elo of a Bradley-Terry model (mean 1500), with bootstrap intervals over items, and how the judge answered."""
    items = sorted({(one["task_type"], one["key"]) for one in results})
    index = {item: i for i, item in enumerate(items)}
    wins = np.zeros((len(items), len(names), len(names)))
    for one in results:
        a, b = (names.index(name) for name in one["systems"])
        wins[index[one["task_type"], one["key"]], a, b] += _won(one, one["systems"][0])
        wins[index[one["task_type"], one["key"]], b, a] += _won(one, one["systems"][1])
    drawn = np.random.default_rng(0).integers(0, len(items), (RESAMPLES, len(items)))
    resampled = np.array([elo(wins[rows].sum(axis=0)) for rows in drawn])
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    total = wins.sum(axis=0)
    points = elo(total)
    first = [answer == 1 for one in results for answer in one["answers"] if answer]
    return {
        "systems": {
            name: {
                "elo": float(points[i]),
                "interval": [float(low[i]), float(high[i])],
                "wins": sum(one["winner"] == name for one in results),
                "ties": sum(one["winner"] is None and name in one["systems"] for one in results),
                "losses": sum(one["winner"] not in (None, name) and name in one["systems"] for one in results),
            }
            for i, name in enumerate(names)
        },
        "pairs": len(results),
        "consistent": sum(one["consistent"] for one in results) / len(results),
        "first_wins": sum(first) / len(first) if first else None,
    }


def _won(one: dict[str, Any], name: str) -> float:
    return 0.5 if one["winner"] is None else float(one["winner"] == name)


def elo(wins: np.ndarray) -> np.ndarray:
    """(n,) ratings of a Bradley-Terry model.

    Args:
        wins: (n, n): how often the row's system won against the column's; ties count half for both.
    """
    from scipy.optimize import minimize

    counted = wins + VIRTUAL * (wins + wins.T > 0)

    def loss(strengths: np.ndarray) -> tuple[float, np.ndarray]:
        difference = strengths[:, None] - strengths[None, :]
        surprise = counted / (1 + np.exp(difference))
        return float((counted * np.logaddexp(0, -difference)).sum()), surprise.sum(axis=0) - surprise.sum(axis=1)

    strengths: np.ndarray = minimize(loss, np.zeros(len(wins)), jac=True, method="BFGS").x
    ratings: np.ndarray = MEAN_ELO + ELO_PER_UNIT * (strengths - strengths.mean())
    return ratings


def markdown(found: dict[str, Any], missing: int) -> str:
    """Systems by rating."""
    rows = [
        [
            name.replace("|", "/"),
            f"{row['elo']:.0f} [{row['interval'][0]:.0f}, {row['interval'][1]:.0f}]",
            *(str(row[key]) for key in ("wins", "ties", "losses")),
        ]
        for name, row in sorted(found["systems"].items(), key=lambda entry: -entry[1]["elo"])
    ]
    first = "-" if found["first_wins"] is None else f"{found['first_wins']:.0%}"
    note = (
        f"{found['pairs']} pairs, each asked in both orders; {missing} lack an image. The same answer in both orders: "
        f"{found['consistent']:.0%} (others are ties); of the answers that name one, {first} name the first image."
    )
    return f"{markdown_table(['System', 'Elo', 'wins', 'ties', 'losses'], rows)}\n\n{note}\n"
