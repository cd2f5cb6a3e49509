"""DINO, CLIP-I and CLIP-T of generated images, without a judge (docs/similarity.md)."""
