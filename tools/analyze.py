#!/usr/bin/env python
"""Analyse a classifier; ``fnkd analyze`` does the same."""

import sys
from pathlib import Path

# The checkout's own package, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fnkd_cli import run

if __name__ == '__main__':
    run('analyze')
