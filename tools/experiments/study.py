"""Running a table: the teacher, each method's trials, then its chosen values with every seed."""

import hashlib
import json
import multiprocessing
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from experiments.job import Cache, Job, Options, run, start
from experiments.results import Results, measure
from experiments.tables import CONFIGS, Method, Table

TRIAL_SEED = 100
TEACHER_SEED = 1000
"""Not the crops of its students, whose seeds count from 0."""


class StudyError(Exception):
    """A training failed. The message names it and its log file."""


class OutOfTimeError(Exception):
    """The time limit is reached. The state is saved, and the same command continues."""


class Study:
    """The trainings of a table.

    Trainings in the results file are not run again, and an interrupted training is resumed.

    Attributes:
        table: What is compared.
        results: What has been run.
        on_device: Whether the images are kept in the device's memory, see :mod:`experiments.on_device`.
    """

    def __init__(
        self,
        table: Table,
        results: Results,
        folder: Path,
        seeds: Sequence[int],
        options: Options | None = None,
        data_root: Path | None = None,
        on_device: bool = False,
    ) -> None:
        if on_device and table.cached_views:
            raise StudyError('this table uses a cached teacher, which --device does not support; leave it out.')
        self.on_device = on_device
        self.table = table
        self.results = results
        self.folder = folder
        self.seeds = seeds
        self._options = dict(options or {})
        self._data_root = data_root

    @property
    def teacher(self) -> Job:
        """The teacher's training."""
        # Older results files have other seeds for the teacher.
        seed = self.results.runs.get('teacher', {}).get('seed', TEACHER_SEED)
        job = self._job('teacher', self.table.teacher, seed, self.table.teacher_options)
        return replace(job, cache=self._cache(job))

    def trials(self, method: Method) -> list[Job]:
        """A method's trainings on a part of the training set; none if nothing is tuned."""
        if len(method.trials) == 1:
            return []
        return [
            self._student(method, f'trial{i}', TRIAL_SEED, {**self.table.trial_options, **values})
            for i, values in enumerate(method.trials)
        ]

    def best_trial(self, method: Method) -> int:
        """The index of the most accurate trial; in a tie, the first."""
        if len(method.trials) == 1:
            return 0
        accuracies = [self.results.runs[job.name]['accuracy'] for job in self.trials(method)]
        return accuracies.index(max(accuracies))

    def finals(self, method: Method) -> list[Job]:
        """A method's final trainings, one for each seed."""
        values = method.trials[self.best_trial(method)]
        cache = self.teacher.cache if method.needs_teacher else None
        options = {**self.table.final_options, **self.table.replay_options, **values}
        return [replace(self._student(method, f'seed{s}', s, options), cache=cache) for s in self.seeds]

    def final_results(self, method: Method) -> list[dict[str, Any]]:
        """The results of the final trainings that have run."""
        if not all(self.results.find(job) for job in self.trials(method)):
            return []
        return [entry for job in self.finals(method) if (entry := self.results.find(job))]

    def ready(self, methods: Sequence[Method]) -> list[Job]:
        """Trainings that can start now: trials first, then seed by seed, so that partial results cover all methods."""
        trained = self.results.find(self.teacher) is not None
        available = trained and self._teacher_available()
        now: list[Job] = []
        later: list[Job] = []
        for method in methods:
            trials = self.trials(method)
            jobs = self.finals(method) if all(self.results.find(job) for job in trials) else trials
            missing = [job for job in jobs if self.results.find(job) is None]
            (later if method.needs_teacher and not available else now).extend(missing)
        return [*([self.teacher] if later or not trained else []), *sorted(now, key=_urgency)]

    def _teacher_available(self) -> bool:
        # The results file does not contain the weights: on another machine the teacher is trained again.
        cache = self.teacher.cache
        return self.checkpoint(self.teacher).is_file() and (cache is None or cache.complete)

    def count(self, methods: Sequence[Method]) -> int:
        """The number of trainings of these methods, including the teacher's."""
        return 1 + sum(len(self.trials(m)) + len(self.seeds) for m in methods)

    def run(self, methods: Sequence[Method], workers: int, console: Console, minutes: float | None = None) -> None:
        """Run the missing trainings, one in each worker.

        Args:
            methods: Of the table.
            workers: The number of processes.
            console: Shows the progress.
            minutes: Time limit, after which the workers are stopped; a training continues from its last epoch.

        Raises:
            StudyError: If a training fails.
            OutOfTimeError: If the time limit is reached.
        """
        ends = None if minutes is None else time.monotonic() + 60 * minutes
        logs = self.folder / 'logs'
        logs.mkdir(parents=True, exist_ok=True)
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), start, (logs,))
        running: dict[Future, Job] = {}
        begun: set[str] = set()
        try:
            with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
                total = self.count(methods)
                done = sum(job.name in self.results.runs for m in methods for job in self.trials(m))
                done += sum(len(self.final_results(m)) for m in methods)
                done += self.teacher not in self.ready(methods)
                task = progress.add_task('starting', total=total, completed=done)
                while True:
                    waiting = [job for job in self.ready(methods) if job.name not in begun]
                    for job in waiting[: workers - len(running)]:
                        begun.add(job.name)
                        running[pool.submit(run, job)] = job
                    if not running:
                        return
                    left = None if ends is None else max(0.0, ends - time.monotonic())
                    finished = wait(running, left, FIRST_COMPLETED).done
                    if not finished:
                        for worker in multiprocessing.active_children():
                            worker.terminate()
                        raise OutOfTimeError('time limit reached; the same command continues from here.')
                    for future in finished:
                        job = running.pop(future)
                        entry = self._take(job, future)
                        done += 1
                        found = f'{job.name} {entry["accuracy"]:.1f} %'
                        progress.update(task, advance=1, description=found)
                        if not console.is_terminal:
                            console.print(f'{done}/{total} {found}', highlight=False)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _take(self, job: Job, future: Future) -> dict[str, Any]:
        try:
            found = future.result()
        except BrokenProcessPool as error:
            raise StudyError(
                f'a worker process died (out of memory?). The logs are in {self.folder / "logs"}.'
            ) from error
        except Exception as error:
            raise StudyError(
                f'{job.name}: {type(error).__name__}: {error}\nThe logs are in {self.folder / "logs"}.'
            ) from error
        teacher = None if job.name == 'teacher' else self.teacher.predictions
        checkpoint = os.path.relpath(found.pop('checkpoint'), self.folder)
        self.results.add((job, {**measure(job.predictions, teacher), **found, 'checkpoint': checkpoint}))
        return self.results.runs[job.name]

    def checkpoint(self, job: Job) -> Path:
        """The checkpoint of a training."""
        return self.folder / self.results.runs[job.name]['checkpoint']

    def _cache(self, teacher: Job) -> Cache | None:
        distilled = [CONFIGS / method.config for method in self.table.methods if method.needs_teacher]
        if not self.table.cached_views:
            return None
        views = self.table.cached_views
        options = self.table.final_options
        name = f'{teacher.folder.name}_{distilled[0].stem}_{views}_{_key(options)}'
        return Cache(teacher.folder.with_name(name), distilled[0], views, options)

    def _student(self, method: Method, suffix: str, seed: int, options: Options) -> Job:
        name = f'{re.sub("[^a-z0-9]+", "_", method.title.lower())}_{suffix}'
        known = method.needs_teacher and self.teacher.name in self.results.runs
        teacher = self.checkpoint(self.teacher) if known else None
        return self._job(name, method.config, seed, options, teacher, method.flags)

    def _job(
        self,
        name: str,
        config: str,
        seed: int,
        options: Options,
        teacher: Path | None = None,
        flags: tuple[str, ...] = (),
    ) -> Job:
        options = {**options, **self._options}
        # The folder depends on the options, so a training is never resumed from one with other options.
        folder = self.folder / f'{name}_{_key([config, seed, options, *flags])}'
        return Job(
            name, CONFIGS / config, folder, seed, options, teacher, self._data_root, flags, on_device=self.on_device
        )


def _key(options: Any) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]


def _urgency(job: Job) -> tuple[bool, int]:
    return '_seed' in job.name, job.seed
