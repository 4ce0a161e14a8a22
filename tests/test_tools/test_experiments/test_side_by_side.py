"""Students side by side learn what each would learn by itself, and a table of them goes on where it stopped."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader

from fnkd_plugin.errors import SetupError

COUNT, BATCH = 156, 8  # 20 steps, the last of them with half as many images
TINY = {
    'train_dataloader.dataset.type': 'TinyCIFARImages',
    'test_dataloader.dataset.type': 'TinyCIFARImages',
    'train_dataloader.batch_size': BATCH,
    'param_scheduler.milestones': [1],
    'model.backbone.depth': 8,
    # Batch norm over so few images makes rounding grow, and the more the larger the steps.
    'optim_wrapper.optimizer.lr': 0.003,
}


@pytest.fixture(autouse=True)
def _noise_images() -> Iterator[None]:
    class TinyCIFARImages(BaseDataset):
        def __init__(self, split: str, data_root: str, **kwargs: Any) -> None:
            super().__init__(**kwargs)

        def load_data_list(self) -> list[dict]:
            random = np.random.default_rng(0)
            images = random.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
            return [dict(img=image, gt_label=int(random.integers(100))) for image in images]

    DATASETS.register_module(module=TinyCIFARImages, force=True)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield
    DATASETS.module_dict.pop('TinyCIFARImages')


def _job(method: str, tmp_path: Path, seed: int = 0, **options: Any):
    from experiments.job import Job
    from experiments.tables import CONFIGS, Pair

    pair = Pair('cifar100/plain_r20_cifar100.py', 'cifar100/fnkd_r20_from_r56_cifar100.py', 'cifar100')
    made = getattr(pair, method)() if method in ('plain', 'lsr', 'alsr') else pair.distilled(method, method)
    name = f'{method}_seed{seed}'
    return Job(name, CONFIGS / made.config, tmp_path / name, seed, {**TINY, **options}, flags=made.flags)


def _group(jobs: list, tmp_path: Path, table: Any = None, name: str = 'group'):
    from experiments.side_by_side.images import Images
    from experiments.side_by_side.recipe import read
    from experiments.side_by_side.training import Group

    pairs = [read(job) for job in jobs]
    recipe = pairs[0][0]
    images = Images(recipe.train, recipe, torch.device('cpu'))
    students = [student for _, student in pairs]
    return Group(name, recipe, students, images, images, table, tmp_path, torch.device('cpu'))


def _exact_table(teacher: Any):
    """As the teacher's own, but in fp32."""
    from experiments.side_by_side.images import VIEWS, TeacherPredictions

    rows = torch.arange(COUNT * VIEWS)
    found = [teacher.forward(teacher._train, part // VIEWS, part % VIEWS) for part in rows.split(2000)]
    features = torch.cat([f[0] for _, f in found])
    return TeacherPredictions(
        torch.cat([z[0] for z, _ in found]), features.norm(dim=1), teacher.network.bias[0].detach()
    )


class _FirstEpoch(Hook):
    def after_train_epoch(self, runner: Runner) -> None:
        runner.train_loop.stop_training = True


def _run(job: Any, group: Any, teacher: tuple[Path, Path], tau: float, tmp_path: Path) -> dict[str, torch.Tensor]:
    """What the Runner makes of a job on the group's batches."""
    from fnkd_plugin.cli.train import parse_args, read_config

    cfg = read_config(parse_args(job.arguments()))
    if cfg.model.type == 'Distiller':
        cfg.model.teacher.config, cfg.model.teacher.checkpoint = map(str, teacher)
        if cfg.model.head.soft_loss.type == 'FNKDLoss':
            cfg.model.head.soft_loss.tau = tau
    whole, rest = group.plan(0)
    seed = group.plan.seeds.index(job.seed)
    order = torch.cat([whole[:, :, seed].flatten(1), rest[:, seed]], 1)
    data = DATASETS.build(dict(type='TinyCIFARImages', split='train', data_root='', serialize_data=False)).data_list
    samples = []
    for index, view in order.T.tolist():
        padded = np.pad(data[index]['img'], ((4, 4), (4, 4), (0, 0)))
        top, left, flipped = view // 18, view // 2 % 9, view % 2
        image = padded[top : top + 32, left : left + 32][:, :: -1 if flipped else 1]
        pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
        samples.append(dict(inputs=pixels, data_samples=DataSample().set_gt_label(data[index]['gt_label'])))
    runner = Runner(
        model=cfg.model.to_dict(),
        work_dir=str(tmp_path / 'runner' / job.name),
        train_dataloader=DataLoader(samples, BATCH, collate_fn=pseudo_collate),  # type: ignore[arg-type]
        train_cfg=dict(by_epoch=True, max_epochs=cfg.train_cfg.max_epochs),
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler,
        data_preprocessor=cfg.data_preprocessor,
        randomness=dict(seed=job.seed),
        experiment_name=job.name,
        default_scope='mmpretrain',
    )
    runner.register_hook(_FirstEpoch())
    runner.train()
    return runner.model.state_dict()


@pytest.mark.slow
def test_students_side_by_side_become_what_the_runner_makes_of_each(tmp_path: Path) -> None:
    from fnkd_plugin.cli.train import parse_args, read_config

    teacher = _group([_job('plain', tmp_path, 7)], tmp_path, name='teacher')
    torch.save(dict(state_dict=teacher.state_of(0)), tmp_path / 'teacher.pth')
    cfg = read_config(parse_args(_job('plain', tmp_path).arguments()))
    Config(dict(model=cfg.model, data_preprocessor=cfg.data_preprocessor)).dump(str(tmp_path / 'teacher.py'))
    table = _exact_table(teacher)
    # Not DIST: the correlations of an untrained student's nearly constant probabilities magnify rounding.
    names = ['kd_benchmark', 'fnkd', 'dkd_beta2', 'wttm']
    jobs = [_job(name, tmp_path) for name in names]
    jobs += [_job('kd_benchmark', tmp_path, 1), _job('plain', tmp_path), _job('alsr', tmp_path, 1)]
    group = _group(jobs, tmp_path, table)
    starts = [group.state_of(i) for i in range(len(jobs))]
    for _ in group.steps():
        pass
    files = tmp_path / 'teacher.py', tmp_path / 'teacher.pth'
    for i, job in enumerate(jobs):
        theirs = _run(job, group, files, table.mean_norm / 3, tmp_path)
        ours = group.state_of(i)
        assert set(ours) == set(theirs)
        moved = (ours['head.fc.weight'] - starts[i]['head.fc.weight']).abs().max()
        assert moved > 3e-4  # 30 times as far as the two may differ
        for key, value in theirs.items():
            allowed = 1e-4 if 'running' in key else 1e-5
            torch.testing.assert_close(
                ours[key], value, atol=allowed, rtol=allowed, msg=lambda m, at=f'{job.name} {key}': f'{at}: {m}'
            )


@pytest.mark.slow
def test_a_group_goes_on_from_its_file_bit_for_bit(tmp_path: Path) -> None:
    jobs = [_job('plain', tmp_path, 0), _job('lsr', tmp_path, 1)]
    once = _group(jobs, tmp_path / 'once')
    twice = _group(jobs, tmp_path / 'twice')
    for group in (once, twice):
        list(group.steps())
    twice.save()
    again = _group(jobs, tmp_path / 'twice')
    assert again.epoch == 1 and again.test_is_due
    for group in (once, again):
        list(group.steps())
    for a, b in zip(once.network.state_dict().values(), again.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert _group(jobs[::-1], tmp_path / 'twice').epoch == 0  # other students, another file


def _run_table(folder: Path) -> dict[str, dict]:
    from dataclasses import replace

    from experiments.results import Results
    from experiments.side_by_side.study import SideBySideStudy
    from experiments.study import Study
    from experiments.tables import cifar100
    from rich.console import Console

    table = cifar100('r20', 'r56')
    table = replace(table, methods=tuple(m for m in table.methods if m.title in ('plain', 'FNKD, normalize')))
    options = {**TINY, 'train_cfg.max_epochs': 2}
    study = Study(table, Results(folder / 'results.json'), folder / 'runs', range(1), options)
    SideBySideStudy(study, 'cpu', Console(quiet=True)).run(table.methods)
    return study.results.runs


@pytest.mark.slow
def test_a_table_cut_off_in_its_first_test_goes_on_without_training_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.side_by_side.training import Group

    monkeypatch.setattr(sys.modules[__name__], 'COUNT', 20)
    whole = _run_table(tmp_path / 'whole')
    trained: list[tuple[str, int]] = []
    cut = {'teacher', 'distilled'}
    steps, test = Group.steps, Group.test

    def noted(group: Any) -> Iterator[None]:
        trained.append((group.name, group.epoch))
        return steps(group)

    def cut_off(group: Any) -> None:
        if group.name in cut:
            cut.remove(group.name)
            raise MemoryError
        test(group)

    monkeypatch.setattr(Group, 'steps', noted)
    monkeypatch.setattr(Group, 'test', cut_off)
    for _ in range(2):
        with pytest.raises(MemoryError):
            _run_table(tmp_path / 'cut')
    found = _run_table(tmp_path / 'cut')
    assert [step for step in trained if step[0] != 'plain'] == [
        (name, epoch) for name in ('teacher', 'distilled') for epoch in (0, 1)
    ]
    measures = ('accuracy', 'nll', 'ece', 'best_accuracy', 'best_epoch')
    assert set(found) == {'teacher', 'plain_seed0', 'fnkd_normalize_seed0'}
    assert all(found[name][m] == whole[name][m] for name in found for m in measures)


def test_methods_of_a_seed_see_the_same_batches_and_seeds_others(tmp_path: Path) -> None:
    from experiments.side_by_side.images import VIEWS, Plan

    a, b = Plan([3], COUNT, BATCH), Plan([5, 3], COUNT, BATCH)
    assert all(torch.equal(x[:, ..., 0, :], y[:, ..., 1, :]) for x, y in zip(a(2), b(2), strict=True))
    whole, rest = b(2)
    order = torch.cat([whole[0].transpose(0, 1).flatten(1), rest[0]], 1)
    assert all(sorted(row) == list(range(COUNT)) for row in order.tolist()) and not torch.equal(*order)
    assert not torch.equal(b(1)[0], whole) and whole[1].min() >= 0 and whole[1].max() < VIEWS


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'optim_wrapper.optimizer.type': 'Adam'}, "optimizer has type='Adam'"),
        ({'optim_wrapper.optimizer.nesterov': True}, 'optimizer has nesterov=True'),
        ({'train_dataloader.drop_last': True}, 'train_dataloader has drop_last=True'),
        ({'optim_wrapper.clip_grad.max_norm': 1}, 'optim_wrapper has clip_grad='),
        ({'model.head.wrong_teacher_weight': 0.0}, 'head has wrong_teacher_weight=0.0'),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(options: dict, named: str, tmp_path: Path) -> None:
    from experiments.side_by_side.recipe import read

    with pytest.raises(SetupError, match=f'fnkd_r20_from_r56_cifar100.py: {named}.*--device'):
        read(_job('kd_benchmark', tmp_path, **options))


def test_other_networks_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r'stages\.0\.0\.bn1'):
        _group([_job('plain', tmp_path, **{'model.backbone.preact': True})], tmp_path)
