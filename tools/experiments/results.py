"""The results file: one entry for each training, written when it ends."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from experiments.job import Job


def measure(predictions: Path, teacher: Path | None) -> dict[str, float]:
    """:func:`measures` of files that hold ``scores`` and ``labels``."""
    found = np.load(predictions)
    theirs = None
    if teacher is not None and teacher.is_file():
        other = np.load(teacher)
        if np.array_equal(other['labels'], found['labels']):  # trials are scored on other images
            theirs = torch.from_numpy(other['scores'])
    return measures(torch.from_numpy(found['scores']), torch.from_numpy(found['labels']), theirs)


def measures(scores: Tensor, labels: Tensor, teacher: Tensor | None) -> dict[str, float]:
    """Accuracy in %, NLL in nats, ECE in % (15 bins), and the agreement with the teacher's predictions in %.

    Args:
        scores: Probabilities [M, K].
        labels: Classes [M].
        teacher: The teacher's probabilities or logits [M, K]; None leaves the agreement out.
    """
    classes = scores.shape[1]
    nll = -scores.double().gather(1, labels[:, None]).clamp_min(torch.finfo(torch.float32).tiny).log().mean()
    found = dict(
        accuracy=100 * multiclass_accuracy(scores, labels, classes, average='micro').item(),
        nll=nll.item(),
        ece=100 * multiclass_calibration_error(scores, labels, classes).item(),
    )
    if teacher is not None:
        found['agreement'] = 100 * multiclass_accuracy(scores, teacher.argmax(1), classes, average='micro').item()
    return {name: round(value, 4) for name, value in found.items()}


class Results:
    """The content of the file. A run is found by its name and must have the same config, seed and options.

    Attributes:
        runs: For each training, by name, its config, flags, seed, options, measures, time and machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        stored = _read(path) if path.exists() else dict(runs={}, places=[])
        self.runs: dict[str, dict[str, Any]] = stored['runs']
        self._places: list[dict[str, Any]] = stored['places']

    def find(self, job: Job) -> dict[str, Any] | None:
        """The job's entry; None if it has not run.

        Raises:
            ValueError: If it has run with another config, seed, flags or options.
        """
        entry = self.runs.get(job.name)
        wanted = _settings(job)
        was = {} if entry is None else {key: entry.get(key, []) for key in wanted}
        if entry is not None and was != wanted:
            raise ValueError(
                f'{self.path}: {job.name} was run with {was}, but {wanted} is wanted. '
                'Move the file to start again, or give another --out.'
            )
        return entry

    def add(self, *results: tuple[Job, dict[str, Any]]) -> None:
        """Add the results of trainings and write the file."""
        from fnkd_plugin.cli.doctor import surroundings

        place = surroundings()
        if place not in self._places:
            self._places.append(place)
        for job, found in results:
            self.runs[job.name] = {**_settings(job), **found, 'place': self._places.index(place)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f'.{os.getpid()}')
        partial.write_text(json.dumps({'places': self._places, 'runs': self.runs}, indent=1) + '\n')
        partial.replace(self.path)


def _settings(job: Job) -> dict[str, Any]:
    found = dict(config=job.config.name, flags=list(job.flags), seed=job.seed, options=dict(job.options))
    return json.loads(json.dumps(found))  # as in the file, which has no tuples


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text())
        if isinstance(stored['runs'], dict) and isinstance(stored['places'], list):
            return stored
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(f'{path} is not a results file of this tool; move it, or give another --out.')
