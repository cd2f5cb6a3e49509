"""scone_pl: a PyTorch Lightning experiment framework for Scone (arXiv 2512.12675)."""

__version__ = "0.1.0"
