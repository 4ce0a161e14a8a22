"""``python -m fnkd_cli``, as ``fnkd``."""

from fnkd_cli import main

if __name__ == '__main__':
    main()
