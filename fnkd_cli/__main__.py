"""``python -m fnkd_cli``, as ``fnkd``."""

from fnkd_cli import main

main()
