"""Memory and time of an open judge, by hand."""

import json

import pytest

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.estimate.judges import JUDGES, estimate_judge, judge_of
from scone_pl.gpus import GPUS


def test_by_hand():
    """1,000 questions of 2 images: 2,748 tokens each, 250 in the answer, 10 at once."""
    judge = judge_of("Qwen/Qwen3-VL-32B-Instruct")
    h100, small = estimate_judge(judge, [GPUS["h100"], GPUS["rtx4090"]], 1000, 2, 10, 0.4)
    assert h100.weights_gib == pytest.approx(33.4e9 * 2 / 2**30)
    assert h100.cache_gib == pytest.approx(10 * (700 + 2 * 1024 + 250) * 2 * 64 * 8 * 128 * 2 / 2**30)
    # 62.2 + 7.3 GiB of 67.2 usable on one H100: two; of 20 usable on a 4090: four.
    assert (h100.gpus, small.gpus) == (2, 4)
    seconds = 1000 * 2 * 33.4e9 * (2748 / 0.4 + 250 / 0.05) / (2 * 989e12)
    assert h100.hours == pytest.approx(seconds / 3600)
    assert h100.dollars == pytest.approx(h100.hours * 2 * 3.0)
    (one,) = estimate_judge(JUDGES["qwen3-vl-8b"], [GPUS["h100"]], 1000, 2, 10, 0.4)
    assert one.gpus == 1
    (huge,) = estimate_judge(judge, [GPUS["rtx4090"]], 1, 100, 100, 0.4)
    assert (huge.gpus, huge.hours) == (None, None)


def test_the_command(capsys):
    assert main(["estimate", "--judge", "qwen3-vl-8b", "--gpu", "h100", "--questions", "10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judge"]["model"] == "Qwen/Qwen3-VL-8B-Instruct"
    assert found["gpus"][0]["gpus"] == 1
    assert main(["estimate", "--judge", "qwen3-vl-32b"]) == 0
    assert "| H100 80GB SXM" in capsys.readouterr().out
    for options, message in {
        ("--judge", "qwen3-vl-8b", "--devices", "2"): "--devices: has no effect with --judge",
        ("--judge", "qwen3-vl-8b", "--trainer.devices", "2"): "--trainer.devices: has no effect with --judge",
        ("--questions", "7"): "--questions: has no effect without --judge",
        ("--judge", "gpt-4.1"): "its sizes are not known; one of qwen3-vl-4b",
        ("--judge", "qwen3-vl-8b", "--images", "0"): "--images is 0",
    }.items():
        assert main(["estimate", *options]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="sizes are not known"):
        judge_of("gpt-4.1")
