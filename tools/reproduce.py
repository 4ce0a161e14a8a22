#!/usr/bin/env python
"""Run the trainings of a table, or continue them, and show the table.

Each method gets the same number of trials on a part of the training set. The best trial's values are then trained on
all of it with each seed, and tested. Each training is added to the results file when it ends, so the same command
continues an interrupted run, also with more seeds or methods. ``--show`` trains nothing; ``--docs`` writes the table
into README.md or docs/.
"""

import argparse
import os
import sys
from pathlib import Path

# One thread for each process, without busy waiting: there are as many processes as cores. Large pages shorten a
# step on a CPU (docs/speed.md); the workers start with them.
os.environ.update(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive', GOMP_SPINCOUNT='0')
os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')
# Use the package of this checkout, also in the worker processes.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from experiments.job import available_cores
from experiments.readme import document_of, replace_between
from experiments.report import as_markdown, as_rich
from experiments.results import Results
from experiments.study import OutOfTimeError, Study, StudyError
from experiments.tables import TABLES
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('table', choices=list(TABLES))
    parser.add_argument('--seeds', type=int, default=3, help='final trainings of each method')
    parser.add_argument('--methods', nargs='+', metavar='NAME', help='only these methods, by their names in the table')
    parser.add_argument(
        '--workers', type=int, default=available_cores(), help='trainings at a time, with one thread each'
    )
    parser.add_argument(
        '--device',
        choices=('cuda', 'cpu'),
        help='keep the images on this device and augment them there: minutes on a GPU. All students of a CIFAR table '
        'are trained at once in this process, those of others in --workers processes',
    )
    parser.add_argument('--minutes', type=float, help='stop within this time; the same command continues')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/reproduce'), help='checkpoints and logs')
    parser.add_argument(
        '--data-root', type=Path, metavar='FOLDER', help="folder of the data set, if it is not the config's"
    )
    parser.add_argument('--out', type=Path, help='results file (default: benchmarks/TABLE.json)')
    parser.add_argument('--show', action='store_true', help='only show the results file')
    parser.add_argument('--docs', action='store_true', help='write the table into README.md or docs/')
    args = parser.parse_args(argv)
    if args.seeds < 1 or args.workers < 1:
        parser.error('--seeds and --workers must be positive integers')
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the missing trainings and print the table."""
    args = parse_args(argv)
    table = TABLES[args.table]()
    titles = [method.title for method in table.methods]
    unknown = [name for name in args.methods or () if name not in titles]
    if unknown:
        raise StudyError(f'--methods: {args.table} has no {", ".join(unknown)}; it has {", ".join(titles)}.')
    results = Results(args.out or ROOT / 'benchmarks' / f'{args.table}.json')
    on_device = bool(args.device) and not table.side_by_side
    folder, seeds = args.work_dir.resolve(), range(args.seeds)
    study = Study(table, results, folder, seeds, data_root=args.data_root, on_device=on_device)
    console = Console()
    document = document_of(ROOT, args.table) if args.docs else None
    if not args.show:
        chosen = [m for m in table.methods if not args.methods or m.title in args.methods]
        if args.device == 'cuda' and not torch.cuda.is_available():
            raise StudyError('--device cuda: PyTorch finds no GPU.')
        if args.device == 'cpu':
            os.environ['CUDA_VISIBLE_DEVICES'] = ''  # for the workers
        try:
            if args.device and table.side_by_side:
                from experiments.side_by_side.study import SideBySideStudy

                SideBySideStudy(study, args.device, console, args.minutes).run(chosen)
            else:
                study.run(chosen, args.workers, console, args.minutes)
        except OutOfTimeError as error:
            sys.exit(f'{error}')
    console.print(as_rich(study))
    if document:
        replace_between(document, args.table, as_markdown(study))


if __name__ == '__main__':
    try:
        main()
    except (StudyError, ValueError) as error:
        hint = '\nSet the folder with --data-root FOLDER.' if 'data_root=' in str(error) else ''
        sys.exit(f'error: {error}{hint}')
    except KeyboardInterrupt:
        sys.exit(130)
