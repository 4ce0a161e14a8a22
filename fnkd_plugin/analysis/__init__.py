"""Feature norms and label noise, looked at: what ``tools/analyze.py`` does.

From the numbers of each image (:mod:`collect`) to what they say (:mod:`statistics`, :mod:`indicators`), and to a page
(:mod:`report`).
"""
