"""World 2 through the code that asks a VLM judge: told the truth, it gives the scores of world 2's own judge."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scone_pl.evaluation.benchmarks.sconeeval import SCONEEVAL
from scone_pl.evaluation.folder import EvaluationFolder
from scone_pl.evaluation.groups import group_tables
from scone_pl.evaluation.items import read_items
from scone_pl.evaluation.scores import SCONEEVAL_TASKS, average_row, task_means
from scone_pl.evaluation.steps import judge, plan_judgements
from scone_pl.worlds.icons.faults import FAULTS
from scone_pl.worlds.icons.world import fixed_set

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
from fake_judge import serving

ANSWERS = ["the target", "distractors", "the empty scene", "half target, half distractor"]


def write_benchmark(folder, episodes):
    """World 2 in SconeEval's format; instructions and descriptions name their episode to the server."""
    lines = []
    for episode in episodes:
        names = [f"{folder.name}/{episode.key}-{n}.png" for n in range(len(episode.references))]
        for name, reference in zip(names, episode.references, strict=True):
            Image.fromarray(reference).save(folder.parent / name)
        described = [[f"{episode.key}/{r}/{c}" for c in range(len(g))] for r, g in enumerate(episode.candidates)]
        lines.append(
            {
                "key": episode.key,
                "task_type": episode.task,
                "instruction": f"{episode.instruction} ({episode.key})",
                "input_images": [name.partition("/")[2] for name in names],
                "subject_list": described,
                "subject_label": [list(group) for group in episode.labels],
            }
        )
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_judge_that_knows_the_truth_gives_the_scores_of_the_worlds_own_judge(tmp_path):
    data, output = tmp_path / "data", EvaluationFolder(tmp_path / "out")
    data.mkdir()
    episodes = fixed_set(2, stream="validation")
    verdicts = {}
    for number, episode in enumerate(episodes):
        fault = FAULTS[ANSWERS[number % 4]]
        image = (fault if fault.applies(episode.task) else FAULTS["the target"]).answer(episode)
        image = image.round().clip(0, 255).astype(np.uint8)
        file = output.images_of(1) / episode.task / f"{episode.key}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
        verdicts[episode.key] = episode.judge(image)
    write_benchmark(data, episodes)

    def truth(asked, times):
        if asked.kind == "DIS":
            key, reference, candidate = asked.instruction.split("/")
            return str(verdicts[key].presence[int(reference)][int(candidate)])
        verdict = verdicts[asked.instruction.rpartition("(")[2].rstrip(")")]
        score = verdict.prompt_following if asked.kind == "PF" else verdict.subject_consistency
        return json.dumps({"score": score, "reasoning": "known"})

    items = read_items(SCONEEVAL, data)
    with serving(truth) as server:
        config = server.config()
        records = judge(
            output, SCONEEVAL, plan_judgements(output, SCONEEVAL, items, config, 1, 1), config, progress=False
        )
    own = task_means([verdicts[e.key].record(e.task, e.key) for e in episodes])
    (table,) = group_tables(records, SCONEEVAL)
    for task in SCONEEVAL_TASKS:
        for column in ("PF", "SC", "COM", "DIS"):
            assert table["per_task"][task].get(column) == pytest.approx(own[task].get(column)), (task, column)
    average = average_row(own)
    assert average is not None
    assert 2 < average["COM"] < 9, "answers of several kinds"
    assert 2 < average["DIS"] < 9
