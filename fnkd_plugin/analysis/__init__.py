"""Analysis of feature norms and label noise, the library of ``tools/analyze.py``.

:mod:`collect` computes numbers per image, :mod:`statistics` and :mod:`indicators` evaluate them, and :mod:`report`
writes the results.
"""
