"""The sub-commands of ``tools/benchmark.py``, one module each; those that begin with an underscore are shared.

A module has ``add_arguments(parser)``, ``run(args) -> dict``, the JSON-like results, and ``table(results) -> str``, the
same as a Markdown table. The first line of its docstring is its help.
"""
