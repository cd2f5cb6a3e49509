"""Patterns of presence by construction: 1 where a candidate is in the image, the first of a reference its target."""

import pytest

from scone_pl.evaluation.benchmarks.sconeeval import SCONEEVAL
from scone_pl.evaluation.failures import NAMES, by_reference, failures_of
from scone_pl.evaluation.groups import failure_rates
from scone_pl.evaluation.summary import Summary
from scone_pl.evaluation.tables import extra_markdown

LABEL = [[1, 0, 0], [1, 0, 0], [1, 0, 0]]
PRESENT = {
    "right": ([[1, 0, 0], [1, 0, 0], [1, 0, 0]], ""),
    "one too many": ([[1, 1, 0], [1, 0, 0], [1, 0, 0]], "redundancy"),
    "another instead": ([[0, 1, 0], [1, 0, 0], [1, 0, 0]], "redundancy omission swap"),
    "gone": ([[0, 0, 0], [1, 0, 0], [1, 0, 0]], "omission drift"),
    "one reference for two": ([[1, 1, 0], [0, 0, 0], [1, 0, 0]], "redundancy omission dominance drift"),
    "nothing": ([[0, 0, 0]] * 3, "omission drift"),
    "everything": ([[1, 1, 1]] * 3, "redundancy"),
}


@pytest.mark.parametrize("name", PRESENT)
def test_patterns(name):
    present, expected = PRESENT[name]
    found = failures_of(LABEL, present)
    assert tuple(found) == NAMES
    assert {one for one, applies in found.items() if applies} == set(expected.split())


def test_a_scene_without_candidates_is_no_failure():
    assert not any(failures_of([[1], []], [[1], []]).values())


def records():
    return [
        {"sampling": 1, "scoring": 1, "key": str(key), "task_type": "distinction_multi_cross", "PF": 5, "SC": 5}
        | {"label": LABEL, "pred": present}
        for key, (present, _) in enumerate(PRESENT.values())
    ]


def test_the_matrix_of_references():
    found = by_reference(records())
    assert {number: (one.targets_present, one.distractors_present) for number, one in found.items()} == {
        1: (4, 5), 2: (5, 2), 3: (6, 2)
    }  # fmt: skip
    assert {(one.targets, one.distractors, one.images) for one in found.values()} == {(7, 14, 7)}
    assert found[1].failed == {"redundancy": 4, "omission": 3, "swap": 1, "drift": 2}
    assert found[2].failed == {"redundancy": 1, "omission": 2, "dominance": 1, "drift": 2}
    rates = failure_rates(records(), SCONEEVAL)["distinction_multi_cross"]
    assert rates["swap"] == pytest.approx(1 / 7)
    assert rates["drift"] == pytest.approx(3 / 7)
    assert not by_reference([{"label": [[], [1]], "pred": [[], [0]]}]).keys() - {2}, "a scene has no candidates"
    text = extra_markdown(Summary.of(records(), SCONEEVAL, "x"))
    row = next(
        line for line in text.partition("### References and generated subjects")[2].splitlines() if "57%" in line
    )
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["1", "57%", "36%", "14%", "0%", "29%", "7"]
