"""``python -m fnkd_plugin``, as ``fnkd``."""

from fnkd_cli import main

if __name__ == '__main__':
    main()
