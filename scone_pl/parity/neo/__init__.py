"""Comparison with the published code of SenseNova-U1 and U1.5 (tests/golden/neo)."""

from scone_pl.parity.neo.case import ParityCase

__all__ = ["ParityCase"]
