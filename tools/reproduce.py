#!/usr/bin/env python
"""Run a named table of trainings, or go on with it, and show what it says.

Every method gets the same number of trials on a part of the training set; the best trial's values are trained anew with
each seed and tested. The results file grows training by training: a second call goes on where the first one stopped,
with more seeds or methods if asked. ``--show`` runs nothing; ``--docs`` puts the table where README.md or docs/ shows
it.
"""

import argparse
import os
import sys
from pathlib import Path

# One thread a process, and none that spins: the processes are as many as the cores.
os.environ.update(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive', GOMP_SPINCOUNT='0')
# The checkout's own package, installed or not; for the worker processes, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.job import available_cores
from experiments.readme import document_of, replace_between
from experiments.report import as_markdown, as_rich
from experiments.results import Results
from experiments.study import Study, StudyError
from experiments.tables import TABLES
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('table', choices=list(TABLES))
    parser.add_argument('--seeds', type=int, default=3, help='trainings of each method with its chosen values')
    parser.add_argument('--methods', nargs='+', metavar='NAME', help='only these, by their names in the table')
    parser.add_argument('--workers', type=int, default=available_cores(), help='trainings at a time, a thread each')
    parser.add_argument(
        '--device',
        choices=('cuda', 'cpu'),
        help='train the students of a CIFAR table side by side in this process, there: minutes on a GPU',
    )
    parser.add_argument('--minutes', type=float, help='with --device: stop in time; the same command goes on')
    parser.add_argument('--together', type=int, default=48, help='with --device: students at a time, at most')
    parser.add_argument('--native', action='store_true', help="with --device cuda: PyTorch's operators, not ours")
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/reproduce'), help='checkpoints and logs')
    parser.add_argument('--data-root', type=Path, metavar='FOLDER', help="the data set's, where it is not the config's")
    parser.add_argument('--out', type=Path, help='the results file (benchmarks/TABLE.json)')
    parser.add_argument('--show', action='store_true', help='only show what the results file says')
    parser.add_argument('--docs', action='store_true', help='put the table where README.md or docs/ shows it')
    args = parser.parse_args(argv)
    if args.seeds < 1 or args.workers < 1:
        parser.error('--seeds and --workers are whole numbers > 0')
    return args


def main(argv: list[str] | None = None) -> None:
    """Run what is missing; print the table."""
    args = parse_args(argv)
    table = TABLES[args.table]()
    titles = [method.title for method in table.methods]
    unknown = [name for name in args.methods or () if name not in titles]
    if unknown:
        raise StudyError(f'--methods: {args.table} has no {", ".join(unknown)}; it has {", ".join(titles)}.')
    results = Results(args.out or ROOT / 'benchmarks' / f'{args.table}.json')
    study = Study(table, results, args.work_dir.resolve(), range(args.seeds), data_root=args.data_root)
    console = Console()
    document = document_of(ROOT, args.table) if args.docs else None
    if not args.show:
        chosen = [m for m in table.methods if not args.methods or m.title in args.methods]
        if args.device:
            from experiments.side_by_side.study import OutOfTimeError, SideBySideStudy

            beside = SideBySideStudy(study, args.device, console, args.minutes, args.together, args.native)
            try:
                beside.run(chosen)
            except OutOfTimeError as error:
                sys.exit(f'{error}')
        else:
            study.run(chosen, args.workers, console)
    console.print(as_rich(study))
    if document:
        replace_between(document, args.table, as_markdown(study))


if __name__ == '__main__':
    try:
        main()
    except (StudyError, ValueError) as error:
        hint = '\nHere the folder is given by --data-root FOLDER.' if 'data_root=' in str(error) else ''
        sys.exit(f'error: {error}{hint}')
    except KeyboardInterrupt:
        sys.exit(130)
