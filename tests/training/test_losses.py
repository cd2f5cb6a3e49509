"""The alignment term follows the bridge's own threshold."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from scone_pl.training.losses import AlignmentConfig, alignment


def test_a_threshold_of_each_image_counts() -> None:
    similarity = torch.tensor([1.0, 0.2, 0.6, 0.4])
    labels = torch.tensor([0.0, 1.0, float("nan")])
    pack = SimpleNamespace(vit_labels=labels, vit_index=torch.tensor([1, 2, 3]))
    state = SimpleNamespace(similarity=similarity)
    threshold = torch.tensor([9.0, 0.1, 0.5, 9.0])
    expected = F.binary_cross_entropy_with_logits(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert alignment(state, pack, threshold, 0.1) == pytest.approx(float(expected))
    number = F.binary_cross_entropy_with_logits(torch.tensor([-1.0, 3.0]), torch.tensor([0.0, 1.0]))
    assert alignment(state, pack, 0.3, 0.1) == pytest.approx(float(number))


@pytest.mark.parametrize("values", [{"weight": -1.0}, {"temperature": 0.0}])
def test_settings_without_meaning_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="alignment"):
        AlignmentConfig(**values)
