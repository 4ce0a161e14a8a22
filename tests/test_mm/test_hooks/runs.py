"""Runs that are cut off in the middle of an epoch, and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from fnkd_plugin.mm.distill_config import add_run_hooks
from tests.helpers import assert_same_weights, config

RANDOM_PIPELINE = [
    dict(type='RandomResizedCrop', scale=16, backend='cv2'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]


class CutOffError(Exception):
    """Stands for a kill."""


@HOOKS.register_module(force=True)
class CutOff(Hook):
    """Raises after ``iteration`` iterations."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if runner.iter + 1 == self.iteration:
            raise CutOffError


@HOOKS.register_module(force=True)
class Seen(Hook):
    """Keeps the batches of a run as the model gets them."""

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        inputs = data_batch['inputs']
        self.batches.append(torch.stack(list(inputs)).clone())


def loader(dataset: Any = None, **options: Any) -> dict:
    """A training data loader of random crops and flips."""
    return (
        dict(
            batch_size=4,
            num_workers=0,
            dataset=dataset or dict(type='RandomImages', pipeline=RANDOM_PIPELINE),
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
        )
        | options
    )


def run(model: Any, work_dir: Path, **options: Any) -> Runner:
    """Train as ``tools/train.py`` does."""
    cfg = config(model, work_dir, **{'train_dataloader': loader(), **options})
    add_run_hooks(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def batches(model: Any, work_dir: Path, **options: Any) -> list[torch.Tensor]:
    """The batches that a run trains on."""
    hooks = [*options.pop('custom_hooks', []), dict(type='Seen')]
    runner = run(model, work_dir, custom_hooks=hooks, **options)
    return next(hook for hook in runner.hooks if isinstance(hook, Seen)).batches


def assert_resumes_exactly(model: Any, folder: Path, cut_off: int = 6, **options: Any) -> Runner:
    """A run that is cut off after ``cut_off`` iterations and resumed ends like one that is not."""
    hooks = options.pop('custom_hooks', [])
    whole = run(model, folder / 'whole', custom_hooks=hooks, **options)
    if 'randomness' in options and options['randomness'].get('seed') is None:
        options['randomness'] = dict(options['randomness'], seed=whole.seed)
    with pytest.raises(CutOffError):
        run(model, folder / 'cut', custom_hooks=[*hooks, dict(type='CutOff', iteration=cut_off)], **options)
    if 'randomness' in options:
        options['randomness'] = dict(options['randomness'], seed=None)
    resumed = run(model, folder / 'cut', custom_hooks=hooks, resume=True, **options)
    assert resumed.iter == whole.iter > cut_off
    assert_same_weights(whole.model.state_dict(), resumed.model.state_dict())
    name = Path((folder / 'whole' / 'last_checkpoint').read_text()).name
    ours, theirs = (torch.load(folder / kind / name, weights_only=True) for kind in ('whole', 'cut'))
    for key in ('state_dict', 'ema_state_dict'):
        if key in ours:
            assert_same_weights(ours[key], theirs[key])
    return resumed
