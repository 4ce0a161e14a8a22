"""``fnkd cache``: a teacher's predictions of every training image, for CachedTeacher."""

import os
import shutil
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.dist import get_dist_info, init_dist
from mmengine.registry import init_default_scope

from fnkd_plugin.cache.build import Source, fill, share
from fnkd_plugin.cache.store import Store
from fnkd_plugin.cli.mistakes import explained
from fnkd_plugin.cli.options import parsed
from fnkd_plugin.cli.terminal import Bar, console, quiet_logger
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm import training
from fnkd_plugin.mm.config import load_config
from fnkd_plugin.mm.replay.seeded_dataset import Replay

_PATIENCE = timedelta(days=7)
"""How long the first process to finish waits for the others."""


def main(argv: list[str] | None = None) -> None:
    """Build or complete a cache."""
    args = parsed('cache', argv)
    quiet_logger()
    _check_folder(args.out)
    cfg = load_config(args.config, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    training.check_data_roots(cfg, ['train_dataloader'])
    training.set_loader_defaults(cfg)
    device = _join_processes(cfg, args.launcher)
    with explained(cfg):
        source = Source(cfg, Replay(args.seed, args.views), device, args.dtype, args.top_k)
    fixed = source.replay.batch_size
    if fixed and args.batch_size not in (None, fixed):
        raise SetupError(
            f'--batch-size {args.batch_size}: images are mixed in the training batches of {fixed}; leave it out.'
        )
    console.quiet = get_dist_info()[0] > 0
    kept = f'the {args.top_k} largest of ' if args.top_k else ''
    mixed = f', mixed in fixed batches of {fixed},' if fixed else ','
    console.print(
        f'{len(source.dataset)} images in {args.views} views{mixed} {kept}{source.teacher.num_classes} classes in '
        f'{args.dtype}: {_size(source.bytes_needed)} in {args.out}',
        markup=False,
    )
    if not Store.exists(args.out):
        _check_space(args.out, source.bytes_needed)
    store = source.open_store(args.out)
    blocks = share(store)
    # With several processes, of the first one's share; the others are about as fast.
    bar = Bar('caching', sum(end - start for _, start, end in blocks))
    batch_size = args.batch_size or cfg.train_dataloader.batch_size
    try:
        fill(source, store, blocks, batch_size, cfg.train_dataloader.num_workers, bar.advance)
    except OSError as error:
        # One of a loader's worker process comes with its traceback, and the message last.
        sentence = str(error).rstrip().split('\n')[-1]
        raise SetupError(f'{sentence}; what is done is kept, and the same command continues') from error
    except KeyboardInterrupt:
        raise SetupError('stopped; what is done is kept, and the same command continues') from None
    finally:
        bar.close()
    console.print(f'done; fnkd train CONFIG --teacher cached:{args.out} trains with it', markup=False)


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
