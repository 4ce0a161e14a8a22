#!/usr/bin/env python
"""Publish a checkpoint: the student's weights alone, as {name}_{date}-{sha256[:8]}.pth or .safetensors.

It loads in stock MMPretrain (.pth) without this plugin, and with --timm in timm.create_model(checkpoint_path=...).
"""

import argparse
import sys
from pathlib import Path

# The checkout's own package, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fnkd_plugin  # noqa: F401
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.publish import publish


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='IN', help='the checkpoint; it is read as data')
    parser.add_argument(
        'out',
        metavar='OUT',
        help='a folder, or a name that may end in .pth or .safetensors (which MMPretrain cannot read)',
    )
    parser.add_argument('--ema', action='store_true', help='the averaged weights, not the trained ones')
    parser.add_argument('--timm', action='store_true', help="timm's own keys, which a TimmStudent has already")
    parser.add_argument(
        '--timm-model',
        metavar='NAME',
        help="as --timm, and the weights must fit timm's model NAME; needed where a TIMMBackbone is converted",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Publish, and print the file's path."""
    args = parse_args(argv)
    print(publish(args.source, args.out, ema=args.ema, timm=args.timm, timm_model=args.timm_model))


if __name__ == '__main__':
    try:
        main()
    except SetupError as error:
        sys.exit(f'error: {error}')
