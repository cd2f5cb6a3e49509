"""Settings of a stage that contradict each other are refused by name; those that agree are not."""

from __future__ import annotations

import pytest

from scone_pl.errors import UserError
from scone_pl.training.settings import StageSettings


def test_flex_cannot_keep_attention() -> None:
    common = {"init_from": "weights", "trainable": ["generation"], "recompute_attention": False}
    with pytest.raises(UserError, match=r"model.recompute_attention is false, but flex .* varlen or split"):
        StageSettings(**common, attention="flex")
    for more in ({"attention": "varlen"}, {"attention": "flex", "activation_checkpointing": False}):
        assert not StageSettings(**common, **more).recompute_attention
