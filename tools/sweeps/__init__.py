"""What ``tools/sweep.py`` tries one by one, each kind in a module of its own.

Each has ``names()``, all that there is; ``attempt(name)``, what became of one, with the key ``failed`` where something
that must hold did not; and ``table(entries)``, the results as Markdown.
"""
