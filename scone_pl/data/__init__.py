"""Data pipeline: samples, shards, stream, packed sequences."""
