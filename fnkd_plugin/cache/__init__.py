"""Cached teacher predictions: stored once for each view of each training image, for any number of trainings."""
