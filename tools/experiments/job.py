"""One training in a worker process: tools/train.py, then measures of its predictions."""

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Options = Mapping[str, Any]
"""Config options, as for ``--cfg-options`` of tools/train.py."""


@dataclass(frozen=True)
class Cache:
    """A teacher's predictions on the training images of a config, stored by tools/cache_teacher.py."""

    folder: Path
    config: Path
    """The distilled config whose teacher is cached."""
    views: int
    """One for each epoch, so that each epoch has its own augmentations."""
    options: Options = field(default_factory=dict)
    """Config options of the students, such as their part of the training set."""

    @property
    def complete(self) -> bool:
        """Whether all rows are written."""
        from fnkd_plugin.cache.store import Store

        return Store.exists(self.folder) and not any(Store(self.folder).pending())


@dataclass(frozen=True)
class Job:
    """One training: a config and its overrides. The validation set is evaluated once, at the end."""

    name: str
    config: Path
    folder: Path
    seed: int
    options: Options = field(default_factory=dict)
    teacher: Path | None = None
    """The teacher's checkpoint."""
    data_root: Path | None = None
    """The folder of the images, if it is not that of the config."""
    flags: tuple[str, ...] = ()
    """Further flags of tools/train.py."""
    cache: Cache | None = None
    """Replaces the live teacher; the teacher's own training makes it at its end."""
    on_device: bool = False
    """Whether the images are kept in the device's memory, and augmented there."""

    @property
    def predictions(self) -> Path:
        """The file of the predictions on the validation set."""
        return self.folder / 'predictions.npz'

    def arguments(self) -> list[str]:
        """The command line of tools/train.py, which resumes an interrupted training from its last checkpoint."""
        options = {
            'randomness.seed': self.seed,
            # MMEngine's loggers have this name, and a worker may start several trainings a second.
            'experiment_name': self.name,
            'default_hooks.save_predictions.type': 'SavePredictionsHook',
            **self.options,
        }
        if self.on_device:
            options['default_hooks.images_on_device.type'] = 'ImagesOnDeviceHook'
        if self.teacher is not None and self.cache is not None:
            options.update({'model.teacher._delete_': True, 'model.teacher.type': 'CachedTeacher'})
            options['model.teacher.path'] = self.cache.folder
        pairs = _pairs({**options, **self._paths(self.teacher)})
        return [str(self.config), '--work-dir', str(self.folder), '--resume', *self.flags, '--cfg-options', *pairs]

    def cache_arguments(self, checkpoint: Path) -> list[str]:
        """The command line of tools/cache_teacher.py, which continues an unfinished cache."""
        cache = self.cache
        assert cache is not None
        flags = ['--out', str(cache.folder), '--views', str(cache.views)]
        return [str(cache.config), *flags, '--cfg-options', *_pairs({**cache.options, **self._paths(checkpoint)})]

    def _paths(self, teacher: Path | None) -> dict[str, Path]:
        paths = {'teacher_checkpoint': teacher, 'data_root': self.data_root}
        return {name: path for name, path in paths.items() if path is not None}


def _pairs(options: Mapping[str, Any]) -> list[str]:
    return [f'{key}={value}' for key, value in options.items()]


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def start(log_folder: Path) -> None:
    """Redirect the output of this process to a log file, so that only the parent prints to the terminal."""
    with open(log_folder / f'worker_{os.getpid()}.log', 'w') as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent is killed, so that the same command can continue at once."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run(job: Job) -> dict[str, Any]:
    """Train, and return the checkpoint's path and the time."""
    began, cpu = time.perf_counter(), time.process_time()
    from experiments import on_device  # noqa: F401  (registers the hook)
    from fnkd_plugin.cli.train import main

    try:
        main(job.arguments())
        checkpoint = Path((job.folder / 'last_checkpoint').read_text().strip())
        if not job.predictions.is_file() or job.predictions.stat().st_mtime < checkpoint.stat().st_mtime:
            # Interrupted between its last checkpoint and its evaluation: resuming had nothing left to train.
            _validate(job, checkpoint)
        if job.cache is not None and job.teacher is None:
            _make_cache(job, checkpoint)
    except BaseException:
        # The parent shows one line only; the log has the traceback.
        traceback.print_exc()
        raise
    return dict(
        checkpoint=str(checkpoint),
        seconds=round(time.perf_counter() - began, 1),
        cpu_seconds=round(time.process_time() - cpu, 1),
    )


def _make_cache(job: Job, checkpoint: Path) -> None:
    from fnkd_plugin.cli.cache import main

    main(job.cache_arguments(checkpoint))


def _validate(job: Job, checkpoint: Path) -> None:
    from mmengine.runner import Runner

    from fnkd_plugin.cli.train import parse_args, read_config
    from fnkd_plugin.mm.config import plain_config
    from fnkd_plugin.mm.training import set_loader_defaults

    plain = plain_config(read_config(parse_args(job.arguments())))
    plain.work_dir, plain.load_from = str(job.folder), str(checkpoint)
    plain.default_hooks['save_predictions'] = dict(type='SavePredictionsHook')
    set_loader_defaults(plain)
    Runner.from_cfg(plain).val()


def feature_norms(config: Path, checkpoint: Path) -> dict[str, list]:
    """For each test image the feature norm (``norm``) and whether the prediction is correct (``right``)."""
    from mmengine.registry import init_default_scope

    from fnkd_plugin.analysis.subject import build_subject
    from fnkd_plugin.mm.config import load_config

    cfg = load_config(config)
    init_default_scope(cfg.default_scope)
    subject = build_subject(cfg, checkpoint, 'test')
    norms: list[float] = []
    right: list[bool] = []
    for batch in subject.batches():
        norms += batch.model.feature_norm.tolist()
        right += (batch.model.logits.argmax(1).cpu().numpy() == subject.labels[batch.indices]).tolist()
    return dict(norm=norms, right=right)
