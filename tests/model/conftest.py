"""Attention takes small samples, as the tests' all are, in two pieces; tests of more must ask for them."""

import pytest


@pytest.fixture
def in_pieces(monkeypatch):
    """No sample is small."""
    monkeypatch.setattr("scone_pl.model.attention.pieces.SMALL_SAMPLE", 0)
