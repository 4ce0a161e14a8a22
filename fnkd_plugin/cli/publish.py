"""``fnkd publish``: the student's weights of a checkpoint as a file."""

from fnkd_cli import arguments
from fnkd_plugin.mm.publish import publish


def main(argv: list[str] | None = None) -> None:
    """Publish, and print the file's path."""
    args = arguments.publish().parse_args(argv)
    print(publish(args.source, args.out, ema=args.ema, timm=args.timm))
