"""Spatial super-resolution, off the shelf: a network, its weights and its licence."""
