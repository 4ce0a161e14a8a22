"""``python -m fnkd_plugin``, as ``fnkd``."""

from fnkd_cli import main

main()
