"""No teacher predicts the crops it was trained on."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS
from PIL import Image

from fnkd_plugin.cache.store import Store
from fnkd_plugin.mm.replay import description
from fnkd_plugin.mm.replay.seeded_dataset import Replay, SampleIndex, checksum, data_seed, seed_samples
from tests.helpers import distilled, resnet, timm_student
from tests.test_cache.caches import make_cache
from tests.test_mm.test_hooks.runs import batches, loader, run

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
PLAIN = {path.stem: path for path in CONFIGS.rglob('plain_*.py')} | {
    path.stem: path for path in CONFIGS.rglob('teacher_*.py')
}


def _pairs() -> list[tuple[Path, Path]]:
    """Each config with a teacher, and the config that trains this teacher."""
    found = []
    for path in sorted(CONFIGS.rglob('*kd_*.py')):
        named = re.search(r"teacher_checkpoint = 'work_dirs/(\w+)/", path.read_text())
        if named:
            found.append((path, PLAIN[named[1]]))
    return found


@pytest.fixture(scope='module')
def cub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of noise in the layout of CUB-200-2011: two crops of it are equal only if they are the same crop."""
    root = tmp_path_factory.mktemp('CUB_200_2011')
    (root / 'images').mkdir()
    for i in range(4):
        noise = np.random.RandomState(i).randint(0, 256, (240, 300, 3)).astype(np.uint8)
        Image.fromarray(noise).save(root / 'images' / f'{i}.png')
    for file, of in dict(
        images=lambda i: f'{i}.png', image_class_labels=lambda i: i + 1, train_test_split=lambda i: 1
    ).items():
        (root / f'{file}.txt').write_text(''.join(f'{i + 1} {of(i)}\n' for i in range(4)))
    return root


def _crops(cfg: Config, root: Path, seed: int, epochs: int = 6) -> set[int]:
    """Checksums of what a config's pipeline makes of each image in each epoch, as training does."""
    init_default_scope('mmpretrain')
    dataset = DATASETS.build({**cfg.train_dataloader.dataset, 'data_root': str(root)})
    seed_samples(dataset, seed)
    return {checksum(dataset[SampleIndex(i, epoch)]['inputs']) for epoch in range(epochs) for i in range(len(dataset))}


def test_each_shipped_teacher_has_a_seed_of_its_own() -> None:
    pairs = _pairs()
    assert len(pairs) > 10
    for path, teacher in pairs:
        seeds = [Config.fromfile(one).randomness.seed for one in (path, teacher)]
        assert seeds[0] != seeds[1], f'{path.name} and {teacher.name} have the seed {seeds[0]}'


def test_crops_of_a_shipped_pair_are_others_live_and_cached(cub: Path) -> None:
    student, teacher = (
        Config.fromfile(CONFIGS / 'cub' / f'{n}.py') for n in ('fnkd_r18_from_r50_cub', 'plain_r50_cub')
    )
    seed = teacher.randomness.seed
    trained_on = _crops(teacher, cub, data_seed(seed))
    assert len(trained_on) == 24
    assert trained_on == _crops(student, cub, data_seed(seed))  # one pipeline: only the seed keeps crops apart
    assert not trained_on & _crops(student, cub, data_seed(student.randomness.seed))
    for views in (0, seed):
        assert not trained_on & _crops(student, cub, Replay(views, 6).data_seed)


def test_a_cache_of_the_same_seed_holds_none_of_the_training_crops(tmp_path: Path) -> None:
    data = loader()
    seen = batches(timm_student(), tmp_path / 'teacher', train_dataloader=data, randomness=dict(seed=0))
    trained_on = {checksum(image) for batch in seen for image in batch}
    teacher = dict(type='TimmTeacher', model='test_resnet', num_classes=4, checkpoint=_last(tmp_path / 'teacher'))
    teacher |= dict(mean=[0.0] * 3, std=[255.0] * 3)
    folder = make_cache(tmp_path / 'cache', teacher, views=2, seed=0, train_dataloader=data)
    store = Store(folder)
    cached = {int(p) for view in range(2) for p in store.lookup(np.full(16, view), np.arange(16))['pixels']}
    assert len(trained_on) == len(cached) == 32 and not trained_on & cached


def _last(folder: Path) -> str:
    return (folder / 'last_checkpoint').read_text().strip()


def test_a_run_on_its_teachers_crops_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(timm_student(), tmp_path / 'teacher', randomness=dict(seed=4))
    checkpoint = _last(tmp_path / 'teacher')
    teacher = dict(type='TimmTeacher', model='test_resnet', num_classes=4, checkpoint=checkpoint)
    teacher |= dict(mean=[0.0] * 3, std=[255.0] * 3)
    lines: list[str] = []
    monkeypatch.setattr(description, 'print_log', lambda line, *_: lines.append(line))

    def warnings(seed: int, teacher: dict = teacher, **options: Any) -> list[str]:
        lines.clear()
        run(distilled(resnet(), teacher), tmp_path / 'student', randomness=dict(seed=seed), **options)
        return list(lines)

    [line] = warnings(4)
    assert checkpoint in line
    [_] = warnings(4, dict(type='EnsembleTeacher', teachers=[teacher]))
    assert not warnings(5)
    other = loader(dict(type='RandomImages', pipeline=[dict(type='PackInputs')]))
    assert not warnings(4, train_dataloader=other)
    lines.clear()
    make_cache(tmp_path / 'cache', teacher, seed=4)
    assert not lines
