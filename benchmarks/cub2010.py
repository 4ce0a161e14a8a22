#!/usr/bin/env python
"""Plain, LSR, KD and FNKD students on CUB-200-2010 under one budget: ``python benchmarks/cub2010.py TEACHER.pth``.

Each method gets three trials of (learning rate, its own weight) on four fifths of the training set, scored on
the held-out fifth; the best trains on the whole training set and is scored on the test set once per seed. All runs go
through tools/train.py. The results file grows run by run; a second call goes on where the first stopped, and
``--methods`` lets several processes share the work.
"""

import argparse
import fcntl
import json
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import train  # noqa: E402

LR = 'optim_wrapper.optimizer.lr'
TRIALS: dict[str, list[dict[str, Any]]] = {
    'plain': [{LR: 0.02}, {LR: 0.04}, {LR: 0.08}],
    'lsr': [{LR: 0.02, 'model.loss.eps': 0.1}, {LR: 0.04, 'model.loss.eps': 0.1}, {LR: 0.04, 'model.loss.eps': 0.3}],
    'kd': [
        {LR: 0.02, 'model.head.hard_weight': 0.5, 'model.head.soft_loss.loss_weight': 0.5},
        {LR: 0.04, 'model.head.hard_weight': 0.5, 'model.head.soft_loss.loss_weight': 0.5},
        {LR: 0.04, 'model.head.hard_weight': 0.1, 'model.head.soft_loss.loss_weight': 0.9},
    ],
    'fnkd': [
        {LR: 0.02, 'model.head.soft_loss.loss_weight': 9.0},
        {LR: 0.04, 'model.head.soft_loss.loss_weight': 9.0},
        {LR: 0.04, 'model.head.soft_loss.loss_weight': 3.0},
    ],
}
TUNING = {
    'train_dataloader.dataset.part': 'fit',
    'val_dataloader.dataset.part': 'tune',
    'val_dataloader.dataset.split': 'train',
    'train_cfg.max_epochs': 3,
    'train_cfg.val_interval': 3,
    'param_scheduler.1.T_max': 2.5,
    'param_scheduler.1.end': 3,
}


def versions() -> dict[str, str]:
    """What the numbers depend on."""
    found = {'python': platform.python_version(), 'machine': platform.machine(), 'system': platform.system()}
    for name in ('torch', 'timm', 'onedl-mmengine', 'onedl-mmpretrain', 'mmengine', 'mmpretrain'):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def run(method: str, options: dict[str, Any], seed: int, teacher: str, work_dir: Path) -> dict[str, Any]:
    """One training; its last validation and its time."""
    start = time.perf_counter()
    words = [f'{key}={value}' for key, value in {**options, 'randomness.seed': seed}.items()]
    if method in ('kd', 'fnkd'):
        words.append(f'teacher_checkpoint={teacher}')
    config = ROOT / 'configs' / f'{method}_lite0_cub2010.py'
    words.append('default_hooks.checkpoint.interval=-1')
    train.main([str(config), '--work-dir', str(work_dir), '--cfg-options', *words])
    scalars = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    last = [json.loads(line) for line in scalars.read_text().splitlines() if 'accuracy/top1' in line][-1]
    return {'top1': last['accuracy/top1'], 'top5': last['accuracy/top5'], 'seconds': round(time.perf_counter() - start)}


def read(path: Path) -> dict[str, Any]:
    """The results so far."""
    return json.loads(path.read_text()) if path.exists() else {'versions': versions(), 'trials': {}, 'test': {}}


def main() -> None:
    """Trials, then the chosen settings on the test set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('teacher', help='checkpoint of configs/teachers/lite2_cub2010.py')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'cub2010.json')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/benchmark_cub2010'))
    parser.add_argument('--methods', nargs='+', choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    args = parser.parse_args()

    def keep(part: str, key: str, options: dict, seed: int) -> dict:
        if key not in read(args.out)[part]:
            found = run(key.split('/')[0], options, seed, args.teacher, args.work_dir / part / key)
            with open(args.out.with_suffix('.lock'), 'w') as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # other processes add other methods' runs
                results = read(args.out)
                results[part][key] = {'options': options, 'seed': seed, **found}
                args.out.write_text(json.dumps(results, indent=1) + '\n')
        kept = read(args.out)[part][key]
        if (kept['options'], kept['seed']) != (options, seed):
            sys.exit(f'{args.out}: {part} {key} was run with other options; move the file away to start anew.')
        return kept

    for method in args.methods:
        tuned = [keep('trials', f'{method}/{i}', {**TUNING, **t}, 0)['top1'] for i, t in enumerate(TRIALS[method])]
        best = tuned.index(max(tuned))
        for seed in args.seeds:
            keep('test', f'{method}/{seed}', TRIALS[method][best], seed)
    for key, found in read(args.out)['test'].items():
        print(f'{key:10} top-1 {found["top1"]:5.2f} %  top-5 {found["top5"]:5.2f} %  {found["options"]}')


if __name__ == '__main__':
    main()
