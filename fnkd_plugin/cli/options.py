"""From the standard library's parsers to MMEngine's values."""

import argparse
import os

from mmengine.config import DictAction

from fnkd_cli.arguments import PARSERS


def parsed(command: str, argv: list[str] | None) -> argparse.Namespace:
    """The command line of a command, with the values of its ``KEY=VALUE`` options; ``LOCAL_RANK`` is set."""
    args = PARSERS[command](None).parse_args(argv)
    for name in ('cfg_options', 'distill_cfg', 'label_smoothing_cfg'):
        if name in args:
            setattr(args, name, key_values(getattr(args, name)))
    if 'local_rank' in args:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def key_values(pairs: list[str]) -> dict[str, object]:
    """``['a.b=1', 'c=x']`` as ``{'a.b': 1, 'c': 'x'}``."""
    found = argparse.Namespace(values={})
    DictAction(['--values'], 'values')(argparse.ArgumentParser(), found, pairs)
    return found.values
