#!/usr/bin/env python
"""Cache the predictions of a distilled config's teacher on every training image, for CachedTeacher.

    python tools/cache_teacher.py CONFIG --out DIR --views 10

The same command continues where one was stopped. If the config mixes images (Mixup, CutMix), its batches are fixed, and
the teacher sees the mixed images. On several processes: torchrun --nproc_per_node 2 tools/cache_teacher.py ...
--launcher pytorch
"""

import argparse
import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.config import DictAction
from mmengine.dist import get_dist_info, init_dist
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# The checkout's own package, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fnkd_plugin  # noqa: F401
from fnkd_plugin.cache.build import Source, fill, share
from fnkd_plugin.cache.manifest import DTYPES
from fnkd_plugin.cache.store import Store
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm import training
from fnkd_plugin.mm.config import load_config
from fnkd_plugin.mm.replay.seeded_dataset import Replay

_PATIENCE = timedelta(days=7)
"""How long the first process to finish waits for the others."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a distilled config, whose teacher is live; it is Python and runs when read')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder of the cache')
    parser.add_argument('--views', type=int, default=1, help='augmentations of each image; epochs repeat them (1)')
    parser.add_argument('--seed', type=int, default=0, help='of the augmentations, other ones than of any run (0)')
    parser.add_argument('--dtype', choices=DTYPES, default=DTYPES[0], help='of the stored logits (float16)')
    parser.add_argument(
        '--top-k',
        type=int,
        metavar='K',
        help='keep only the K largest logits, for KD and FNKD (docs/cache.md has the error)',
    )
    parser.add_argument('--batch-size', type=int, help="images the teacher sees at once (the config's)")
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='as in tools/train.py'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.views < 1 or (args.batch_size or 1) < 1:
        parser.error('--views and --batch-size must be at least 1')
    return args


def main(argv: list[str] | None = None) -> None:
    """Build or complete a cache."""
    args = parse_args(argv)
    _check_folder(args.out)
    cfg = load_config(args.config, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    training.check_data_roots(cfg, ['train_dataloader'])
    training.set_loader_defaults(cfg)
    device = _join_processes(cfg, args.launcher)
    source = Source(cfg, Replay(args.seed, args.views), device, args.dtype, args.top_k)
    fixed = source.replay.batch_size
    if fixed and args.batch_size not in (None, fixed):
        raise SetupError(
            f'--batch-size {args.batch_size}: images are mixed in the training batches of {fixed}; leave it out.'
        )
    console = Console(quiet=get_dist_info()[0] > 0)
    kept = f'the {args.top_k} largest of ' if args.top_k else ''
    mixed = f', mixed in fixed batches of {fixed},' if fixed else ','
    console.print(
        f'{len(source.dataset)} images in {args.views} views{mixed} {kept}{source.teacher.num_classes} classes in '
        f'{args.dtype}: {_size(source.bytes_needed)} in {args.out}',
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if not Store.exists(args.out):
        _check_space(args.out, source.bytes_needed)
    store = source.open_store(args.out)
    blocks = share(store)
    with _progress(console) as progress:
        # With several processes, of the first one's share; the others are about as fast.
        bar = progress.add_task('predicting', total=sum(end - start for _, start, end in blocks))
        batch_size = args.batch_size or cfg.train_dataloader.batch_size
        workers = cfg.train_dataloader.num_workers
        fill(source, store, blocks, batch_size, workers, lambda count: progress.advance(bar, count))
    console.print(
        f"done; model.teacher=dict(type='CachedTeacher', path='{args.out}') trains with it",
        markup=False,
        soft_wrap=True,
    )


def _join_processes(cfg: training.Config, launcher: str) -> torch.device:
    training.prepare_cpu_processes(cfg, launcher, _PATIENCE)
    if not torch.cuda.is_available():
        return torch.device('cpu')
    if launcher != 'none':
        init_dist(launcher, timeout=_PATIENCE.total_seconds())
    return torch.device('cuda', torch.cuda.current_device())


def _existing(folder: Path) -> Path:
    return next(path for path in [folder.absolute(), *folder.absolute().parents] if os.path.lexists(path))


def _check_folder(folder: Path) -> None:
    existing = _existing(folder)
    if not existing.is_dir():
        raise SetupError(f'--out {folder}: {existing} is not a folder.')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise SetupError(f'--out {folder}: {existing} cannot be written to.')
    if existing == folder.absolute() and not Store.exists(folder) and any(existing.iterdir()):
        raise SetupError(f'--out {folder}: it holds other files, but no cache; give another folder.')


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(_existing(folder)).free
    if needed > free:
        raise SetupError(f'--out {folder}: the cache needs {_size(needed)}, but {_size(free)} are free there.')


def _size(count: float) -> str:
    units = ['B', 'kB', 'MB', 'GB', 'TB']
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f'{count:.3g} {units[0]}'


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn('left'), TimeRemainingColumn())
    return Progress(TextColumn('{task.description}'), *columns, console=console)


def _sentence(error: Exception) -> str:
    # One of a loader's worker process comes with its traceback, and the message last.
    return str(error).rstrip().split('\n')[-1]


if __name__ == '__main__':
    try:
        main()
    except (SetupError, FileNotFoundError) as error:
        sys.exit(f'error: {_sentence(error)}')
    except OSError as error:
        sys.exit(f'error: {_sentence(error)}; what is done is kept, and the same command continues')
    except KeyboardInterrupt:
        sys.exit('stopped; what is done is kept, and the same command continues')
