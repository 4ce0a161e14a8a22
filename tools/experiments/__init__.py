"""Comparisons of methods: named tables of trainings, run in worker processes, resumable, and their results."""
