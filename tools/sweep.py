#!/usr/bin/env python
"""Try distillation with every classification config of MMPretrain, or every family of timm's models.

The results file ``--out`` has one entry for each. The same command continues an interrupted sweep, and repeats entries
for which FNKD did not work. ``--docs docs/compatibility.md`` writes the tables there.
"""

import argparse
import gc
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from experiments.readme import replace_between
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from fnkd_plugin.cli.doctor import surroundings

# Use the package of this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sweeps import mmpretrain_configs, timm_families

SWEEPS = dict(mmpretrain=mmpretrain_configs, timm=timm_families)

RETRIED = {'failed', 'broken', 'refused', 'reason'}
"""Entries with one of these keys are tried again: a change of this package may fix them."""


def main(argv: list[str] | None = None) -> None:
    """Run a sweep, or write its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('what', choices=SWEEPS)
    parser.add_argument('--out', type=Path, required=True, help='results file (JSON)')
    parser.add_argument('--only', default='', metavar='TEXT', help='only names that contain this text')
    parser.add_argument(
        '--docs', type=Path, help='write the tables into this file, between two comments, and run nothing'
    )
    args = parser.parse_args(argv)
    sweep = SWEEPS[args.what]
    results = json.loads(args.out.read_text()) if args.out.is_file() else {**surroundings(), 'entries': {}}
    if args.docs:
        if not results['entries']:
            parser.error(f'{args.out} holds no results')
        replace_between(args.docs, args.what, sweep.table(results['entries']))
        return
    if results['versions'] != surroundings()['versions']:
        parser.error(f'{args.out} was made with other versions ({results["versions"]}); give another file.')
    init_default_scope('mmpretrain')
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    warnings.simplefilter('ignore')
    names = sweep.names()
    for number, name in enumerate(names, 1):
        known = results['entries'].get(name)
        if args.only not in name or (known and not RETRIED & set(known)):
            continue
        entry = timed(sweep, name)
        results['entries'][name] = entry
        partial = args.out.with_suffix('.partial')
        partial.write_text(json.dumps(results, indent=1, sort_keys=True) + '\n')
        partial.replace(args.out)
        print(f'{number}/{len(names)} {name} {entry}', flush=True)


def timed(sweep: Any, name: str) -> dict[str, Any]:
    """The entry of one name, with its ``seconds``. Memory is freed afterwards."""
    start = time.perf_counter()
    entry = sweep.attempt(name)
    gc.collect()
    return {**entry, 'seconds': round(time.perf_counter() - start, 1)}


if __name__ == '__main__':
    main()
