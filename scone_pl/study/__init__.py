"""Experiments in the mini-world: arms by seeds, run side by side, and the page of docs made of their numbers."""
