"""Reproducible augmentations: the same pixels for the same (seed, view, sample)."""
