#!/usr/bin/env python
"""Publish a checkpoint; ``fnkd publish`` does the same."""

import sys
from pathlib import Path

# Use the package of this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fnkd_cli import run

if __name__ == '__main__':
    run('publish')
