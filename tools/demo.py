#!/usr/bin/env python
"""A teacher and its students on real 8x8 digits: plain, LSR, KD and FNKD, compared fairly.

Every method gets the same number of trials on the validation split: the same learning rates, each with
another soft weight of the method's own range (a Latin square; plain has no weight). The best trial's values,
the smaller learning rate in a tie, are then trained anew with each seed and tested once, on the test split.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

# One thread a process, and none that spins: the processes are as many as the cores.
os.environ.update(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive', GOMP_SPINCOUNT='0')
# The checkout's own package, installed or not; for the worker processes, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo_methods import LEARNING_RATES, METHODS, Method, latin_order, spread
from demo_report import table_of, write_results
from demo_worker import Job, feature_norms, run, start
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

CONFIGS = Path(__file__).resolve().parent.parent / 'configs' / 'demo'
TEACHER = 'teacher_digits.py'
MAX_WORKERS = 4  # each takes some 0.7 GB


class DemoError(Exception):
    """A training failed; the message says which and where its log is."""


class Demo:
    """The trainings of one demo, in a pool of worker processes."""

    search_seed = 100

    def __init__(
        self, out: Path, seeds: int, trials: int, options: Sequence[tuple[str, str]], console: Console
    ) -> None:
        self.out = out
        self.seeds = range(seeds)
        self.trials = trials
        self.options = dict(options)
        self.console = console
        self.results: list[dict[str, Any]] = []
        self.norms: dict[str, dict[str, list]] = {}

    @property
    def job_count(self) -> int:
        """How many trainings there are."""
        return 1 + len(METHODS) * (self.trials + len(self.seeds))

    def job(self, name: str, method: str, config: str, split: str, **values: Any) -> Job:
        """A training with its own folder."""
        values['options'] = {**values.get('options', {}), **self.options}
        return Job(name, method, CONFIGS / config, self.out / 'runs' / name, split, **values)

    def student_job(self, method: Method, name: str, split: str, seed: int, lr: float, weight: float | None) -> Job:
        """A student's training."""
        options: dict[str, Any] = {} if weight is None else dict(method.weight_options(weight))
        if method.needs_teacher:
            options['teacher_checkpoint'] = self.result('teacher')['checkpoint']
        name = f'{method.title.lower()}_{name}'
        return self.job(name, method.title, method.config, split, seed=seed, lr=lr, weight=weight, options=options)

    def trial_jobs(self, method: Method) -> list[Job]:
        """The trials of a method on the validation split."""
        rates = spread(*LEARNING_RATES, self.trials)
        weights = spread(*method.weights, self.trials) if method.weight_name else [None] * self.trials
        return [
            self.student_job(method, f'trial{i}', 'val', self.search_seed, rate, weights[j])
            for i, (rate, j) in enumerate(zip(rates, latin_order(self.trials), strict=True))
        ]

    def final_jobs(self, method: Method) -> list[Job]:
        """The trainings of a method with its best trial's values, one a seed."""
        best = self.best_trial(method)
        return [
            self.student_job(method, f'seed{seed}', 'test', seed, best['lr'], best['weight']) for seed in self.seeds
        ]

    def best_trial(self, method: Method) -> dict[str, Any]:
        """The most accurate trial, of equals the one with the smallest learning rate."""
        trials = [r for r in self.results if r['method'] == method.title and r['split'] == 'val']
        return max(trials, key=lambda r: (r['accuracy'], -r['lr']))

    def finals(self, method: Method) -> list[float]:
        """Test accuracies, one a seed."""
        found = [r for r in self.results if r['method'] == method.title and r['split'] == 'test']
        return [r['accuracy'] for r in sorted(found, key=lambda r: r['seed'])]

    def result(self, name: str) -> dict[str, Any]:
        """The result of a training."""
        return next(r for r in self.results if r['name'] == name)

    def train(self, workers: int) -> None:
        """Run everything; what needs no teacher runs beside the teacher's training."""
        alone = [m for m in METHODS if not m.needs_teacher]
        taught = [m for m in METHODS if m.needs_teacher]
        columns = (
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('trainings,'),
            TimeElapsedColumn(),
            TextColumn('gone,'),
            TimeRemainingColumn(),
            TextColumn('to go'),
        )
        context = multiprocessing.get_context('spawn')
        pool = ProcessPoolExecutor(workers, context, start, (self.out / 'logs',))
        try:
            with Progress(*columns, console=self.console) as progress:
                task = progress.add_task('starting', total=self.job_count)
                teacher = self.job('teacher', 'teacher', TEACHER, 'test', seed=0)
                trials = [job for m in alone for job in self.trial_jobs(m)]
                self._run(pool, [teacher, *trials], progress, task)
                trials = [job for m in taught for job in self.trial_jobs(m)]
                finals = [job for m in alone for job in self.final_jobs(m)]
                self._run(pool, [*trials, *finals], progress, task)
                self._run(pool, [job for m in taught for job in self.final_jobs(m)], progress, task)
            models = {'Teacher': (TEACHER, 'teacher'), 'FNKD student': ('plain_digits.py', 'fnkd_seed0')}
            asked = {
                title: pool.submit(feature_norms, CONFIGS / config, Path(self.result(name)['checkpoint']))
                for title, (config, name) in models.items()
            }
            self.norms = {title: self._wait(future, title) for title, future in asked.items()}
        except BrokenProcessPool as error:
            raise DemoError(f'a worker process died (out of memory?); the logs are in {self.out / "logs"}.') from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, pool: ProcessPoolExecutor, jobs: list[Job], progress: Progress, task: Any) -> None:
        names = {pool.submit(run, job): job.name for job in jobs}
        for future in as_completed(names):
            result = self._wait(future, names[future])
            self.results.append(result)
            progress.update(task, advance=1, description=f'{result["name"]} {result["accuracy"]:.1f} %')

    def _wait(self, future: Future, name: str) -> Any:
        try:
            return future.result()
        except BrokenProcessPool:
            raise
        except Exception as error:
            raise DemoError(f'{name}: {type(error).__name__}: {error}\nThe logs are in {self.out / "logs"}.') from error


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def fresh_folder(wanted: Path) -> Path:
    """``wanted``, or the first of wanted_2, wanted_3, ... that is free: earlier results stay."""
    folder, number = wanted, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f'{wanted.name}_{number}')
    (folder / 'logs').mkdir(parents=True)
    return folder


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is no whole number > 0')
    return int(text)


def _option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition('=')
    if not (key and equals):
        raise argparse.ArgumentTypeError(f'{text} is not of the form KEY=VALUE')
    return key, value


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'), help='folder; if in use, OUT_2 and so on')
    parser.add_argument('--seeds', type=_count, default=3, help='trainings of each method with its chosen values')
    parser.add_argument('--trials', type=_count, default=4, help='trials of each method on the validation split')
    parser.add_argument(
        '--cfg-options', nargs='+', type=_option, default=[], metavar='KEY=VALUE', help='handed to every training'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, print the table, write the files, say where they are."""
    args = parse_args(argv)
    console = Console()
    began = time.perf_counter()
    out = fresh_folder(args.out)
    workers = min(MAX_WORKERS, available_cores())
    demo = Demo(out.resolve(), args.seeds, args.trials, args.cfg_options, console)
    console.print(f'{demo.job_count} trainings in {workers} processes; files go to {out}')
    demo.train(workers)
    seconds = time.perf_counter() - began
    files = write_results(demo, seconds, workers)
    console.print(table_of(demo))
    for title, path in files.items():
        console.print(f'{title + ":":<27}{os.path.relpath(path)}', highlight=False, soft_wrap=True)
    console.print(f'{len(demo.results)} trainings took {seconds:.0f} s.')


if __name__ == '__main__':
    try:
        main()
    except DemoError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
