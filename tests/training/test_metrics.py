"""Means over packs and ranks have the values that the definition gives, on one rank and on two."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from metric_ranks import PACKS
from running import run_script

from scone_pl.model.bridge import BridgeState
from scone_pl.training.metrics import Means, blocked_fraction

SCRIPT = Path(__file__).parent / "metric_ranks.py"


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_values_over_packs_and_ranks(ranks: int) -> None:
    means, again, quality, nothing = run_script(SCRIPT, ranks)[-1]
    assert means["loss"] == pytest.approx(sum(mean for mean, _ in PACKS) / 4)
    assert means["fraction"] == pytest.approx((1 * 2 + 3 * 6 + 10 * 4) / 12)
    assert means["nothing"] == 0
    assert again == dict.fromkeys(means, 0.0), "each step begins anew"
    # Known tokens: 0.9 and 0.8 are kept and show targets, 0.6 is kept and does not, 0.3 is a target's and is blocked.
    assert quality["precision"] == pytest.approx(2 / 3)
    assert quality["recall"] == pytest.approx(2 / 3)
    assert quality["auroc"] == pytest.approx(5 / 6), "of six pairs, 0.3 against 0.6 is the wrong way round"
    assert nothing == {}, "nothing is said where the data says of no token whose it is"


def test_a_loss_that_is_no_number_shows() -> None:
    means = Means("loss")
    means.update({"loss": torch.tensor(float("nan"))})
    means.update({"loss": torch.tensor(1.0)})
    assert means.compute()["loss"].isnan()


def test_blocked_fraction_counts_reference_tokens() -> None:
    references = torch.tensor([True, True, True, False])
    state = BridgeState(torch.ones(4), torch.tensor([True, False, False, True]))
    fraction, count = blocked_fraction(state, SimpleNamespace(reference_tokens=references))
    assert fraction == pytest.approx(1 / 3)
    assert count == 3
    fraction, count = blocked_fraction(state, SimpleNamespace(reference_tokens=torch.zeros(4, dtype=torch.bool)))
    assert (fraction, count) == (0, 0)
