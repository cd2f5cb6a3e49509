"""Samples -> shards -> stream -> packed sequences."""
