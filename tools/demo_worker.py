"""What a worker process of the demo does: trainings, one after another, through tools/train.py."""

import json
import os
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One training: a config, what it overrides, and the split that is evaluated once, at the end."""

    name: str
    method: str
    config: Path
    folder: Path
    split: str
    seed: int
    lr: float | None = None
    weight: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """The command line of tools/train.py."""
        options = {
            'randomness.seed': self.seed,
            'val_dataloader.dataset.split': self.split,
            # MMEngine keeps its loggers by this name, and a worker trains more than once a second.
            'experiment_name': self.name,
            **self.options,
        }
        if self.lr is not None:
            options['optim_wrapper.optimizer.lr'] = self.lr
        pairs = [f'{key}={value}' for key, value in options.items()]
        return [str(self.config), '--work-dir', str(self.folder), '--cfg-options', *pairs]


def start(log_folder: Path) -> None:
    """Send everything that is printed in this process to a file, which leaves the terminal to the parent."""
    with open(log_folder / f'worker_{os.getpid()}.log', 'w') as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())


def run(job: Job) -> dict[str, Any]:
    """Train, and read the result from the files that the Runner wrote."""
    began, cpu = time.perf_counter(), time.process_time()
    from train import main

    try:
        main(job.arguments())
    except BaseException:
        # The parent shows one line; the log has the rest.
        traceback.print_exc()
        raise
    return dict(
        name=job.name,
        method=job.method,
        split=job.split,
        seed=job.seed,
        lr=job.lr,
        weight=job.weight,
        accuracy=_accuracy(job.folder),
        checkpoint=(job.folder / 'last_checkpoint').read_text().strip(),
        seconds=round(time.perf_counter() - began, 2),
        cpu_seconds=round(time.process_time() - cpu, 2),
    )


def _accuracy(folder: Path) -> float:
    logs = max(folder.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in logs.read_text().splitlines()]
    return [line['accuracy/top1'] for line in lines if 'accuracy/top1' in line][-1]


def feature_norms(config: Path, checkpoint: Path) -> dict[str, list]:
    """The feature norm of each test image, and whether the model is right on it."""
    from mmengine.runner import Runner

    from fnkd_plugin.engine.training import load_config
    from fnkd_plugin.teachers import MMPretrainTeacher

    cfg = load_config(config)
    model = MMPretrainTeacher(cfg, checkpoint)
    model.prepare(model.pixels)
    norms: list[float] = []
    right: list[bool] = []
    for batch in Runner.build_dataloader(cfg.test_dataloader):
        data = model.model.data_preprocessor(batch, False)
        prediction = model.predict(data['inputs'])
        labels = [int(sample.gt_label) for sample in data['data_samples']]
        norms += prediction.feature_norm.tolist()
        right += [a == b for a, b in zip(prediction.logits.argmax(1).tolist(), labels, strict=True)]
    return dict(norm=norms, right=right)
