"""A mini-world-sized model with random weights, in which everything matters."""

from __future__ import annotations

import pytest
from tiny_checkpoints import tiny_model

from scone_pl.data.tokenizer import byte_tokenizer
from scone_pl.model.config import mini
from scone_pl.sampling.pipeline import SconePipeline


@pytest.fixture(scope="session")
def pipeline() -> SconePipeline:
    tokenizer = byte_tokenizer()
    return SconePipeline(tiny_model(mini(tokenizer.vocab_size)), tokenizer, urls=False)
