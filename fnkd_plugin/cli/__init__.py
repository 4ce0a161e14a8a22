"""The commands of ``fnkd``: functions that the console and ``tools/`` call."""
