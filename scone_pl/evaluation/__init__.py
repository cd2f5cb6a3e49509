"""Benchmarks: what is asked, how answers are judged, how judgements become tables."""
