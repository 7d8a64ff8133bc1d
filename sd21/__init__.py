"""Stable Diffusion 2.1: the autoencoder, the text encoder, the layers of its U-Net, and its checkpoints."""
