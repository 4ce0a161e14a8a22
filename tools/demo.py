#!/usr/bin/env python
"""A teacher and its students: a table and a picture in two minutes.

With FNKD_DATA and FNKD_WEIGHTS set, on photos of ten birds, by the recipe of `fnkd train FOLDER`: plain and FNKD.
Else on real 8x8 digits, a fair comparison of plain, LSR, KD and FNKD: each method gets the same number of trials
on the validation split: the same learning rates, each with another loss weight from the method's range (a Latin square;
plain has no weight). The best trial's values (in a tie, the smaller learning rate) are then trained with each seed and
tested once on the test split.
"""

import argparse
import contextlib
import io
import os
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

# As fnkd does; it takes effect before torch is imported.
os.environ.update(OMP_WAIT_POLICY='passive', GOMP_SPINCOUNT='3000')
# Use the package of this checkout, also in the worker processes.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import demo_birds
from demo_picture import draw
from experiments.job import available_cores, feature_norms
from experiments.report import as_rich
from experiments.results import Results
from experiments.study import Study, StudyError
from experiments.tables import digits
from mmengine.config import DictAction
from rich.console import Console

MAX_WORKERS = 4  # each needs about 0.7 GB


def fresh_folder(wanted: Path) -> Path:
    """``wanted``, or the first unused one of wanted_2, wanted_3, ..., so that earlier results are kept."""
    folder, number = wanted, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f'{wanted.name}_{number}')
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_files(study: Study, out: Path) -> dict[str, Path]:
    """Write the picture and the FNKD student next to the results; return all files by title."""
    files = {
        'picture': out / 'demo.png',
        'results': study.results.path,
        "FNKD student's checkpoint": out / 'fnkd_student.pth',
        'its plain config': out / 'fnkd_student.py',
        'all trainings': study.folder,
    }
    fnkd = study.finals(study.table.methods[-1])[0]
    shutil.copy(study.checkpoint(fnkd), files["FNKD student's checkpoint"])
    shutil.copy(fnkd.folder / 'plain_fnkd_digits.py', files['its plain config'])
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # what OpenMMLab prints while it is imported
        norms = feature_norms(study.teacher.config, study.checkpoint(study.teacher))
    accuracies = {m.title: [entry['accuracy'] for entry in study.final_results(m)] for m in study.table.methods}
    teacher = study.results.runs['teacher']['accuracy']
    draw(files['picture'], 'Handwritten digits', accuracies, teacher, norms)
    return files


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a positive integer')
    return int(text)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/demo'), help='output folder; if it exists, OUT_2 and so on'
    )
    parser.add_argument('--seeds', type=_count, help='final trainings of each method (2 of birds, 3 of digits)')
    parser.add_argument('--trials', type=_count, help="trials of each method on the digits' validation split (3)")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='options of every training of digits',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, print the table, write the files and print their paths."""
    args = parse_args(argv)
    birds = demo_birds.wanted()
    if birds and (args.trials or args.cfg_options):
        raise StudyError('--trials and --cfg-options are for digits; unset FNKD_DATA.')
    if birds and (files := demo_birds.missing()):
        raise StudyError(f'{files[0]} is missing; for digits unset FNKD_DATA.')
    console = Console()
    began = time.perf_counter()
    out = fresh_folder(args.out).resolve()
    console.print(f'results are written to {os.path.relpath(out)}', highlight=False)
    files = demo_birds.run(out, args.seeds) if birds else run_digits(args, out, console)
    for title, path in files.items():
        console.print(f'{title + ":":<27}{os.path.relpath(path)}', highlight=False, soft_wrap=True)
    console.print(f'The demo took {time.perf_counter() - began:.0f} s.', highlight=False)


def run_digits(args: argparse.Namespace, out: Path, console: Console) -> dict[str, Path]:
    """Train the digits' teacher and students, and print the table; returns the files by title."""
    workers = min(MAX_WORKERS, available_cores())
    os.environ['OMP_NUM_THREADS'] = '1'  # of the workers, of which there are as many as cores
    results = Results(out / 'results.json')
    study = Study(digits(args.trials or 3), results, out / 'runs', range(args.seeds or 3), args.cfg_options)
    methods = study.table.methods
    console.print(f'{study.count(methods)} trainings in {workers} processes')
    study.run(methods, workers, console)
    files = write_files(study, out)
    console.print(as_rich(study))
    return files


if __name__ == '__main__':
    try:
        main()
    except StudyError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
