"""Pools of icons with planted faults, of which all is known, and a server that answers for models."""
