"""SenseNova-U1 and U1.5: one decoder without ViT and without autoencoder (docs/second_base.md)."""
