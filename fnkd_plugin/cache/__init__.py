"""Cached teacher predictions: stored once for every view of every training image, read by many trainings."""
