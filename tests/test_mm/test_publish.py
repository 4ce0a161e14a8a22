"""Published files: what is in them, their names, and that stock MMPretrain and timm agree with the trained model."""

import copy
import datetime
import errno
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import timm
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.publish import publish
from fnkd_plugin.mm.training import dump_plain_config
from tests.helpers import CLASSES, SIZE, assert_same_weights, config, distilled, resnet, timm_student, timm_teacher

pytestmark = pytest.mark.upstream
ROOT = Path(__file__).resolve().parents[2]
STUDENTS = {'resnet': resnet(), 'timm': timm_student(channels_last=True)}


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Runner, Path]]:
    """Distilled students after an epoch with EMA, and their checkpoints as MMEngine writes them."""
    trained = {}
    for name, student in STUDENTS.items():
        folder = tmp_path_factory.mktemp(name)
        cfg = config(
            distilled(student, timm_teacher(folder)),
            folder,
            train_cfg=dict(by_epoch=True, max_epochs=1),
            custom_hooks=[dict(type='EMAHook', momentum=0.5)],
            experiment_name=f'fnkd_{name}',
        )
        runner = Runner.from_cfg(cfg)
        runner.train()
        trained[name] = runner, folder / 'epoch_1.pth'
    return trained


def _ema(runner: Runner) -> torch.nn.Module:
    return next(hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)).module


@pytest.mark.parametrize('ema', [False, True])
@pytest.mark.parametrize('name', STUDENTS)
def test_holds_the_students_weights_and_plain_meta_alone(name: str, ema: bool, runs: dict, tmp_path: Path) -> None:
    runner, source = runs[name]
    published = torch.load(publish(source, tmp_path / 'x', ema=ema), weights_only=True)
    assert set(published) == {'state_dict', 'meta'}
    expected, other = (_ema(runner), runner.model)[:: 1 if ema else -1]
    assert_same_weights(published['state_dict'], dict(expected.state_dict()))
    assert any(not torch.equal(value, other.state_dict()[key]) for key, value in published['state_dict'].items())
    meta = published['meta']
    assert meta['dataset_meta'] == dict(classes=[f'c{i}' for i in range(CLASSES)])
    assert (meta['epoch'], meta['iter'], meta['seed']) == (1, 4, 0)
    assert all(isinstance(v, (int, float)) or k.endswith('_version') for k, v in meta.items() if k != 'dataset_meta')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_the_name_tells_date_and_content(suffix: str, runs: dict, tmp_path: Path) -> None:
    _, source = runs['resnet']
    path = publish(source, tmp_path / 'new' / f'student.v2{suffix}')
    name, date, digest = re.fullmatch(rf'(.+)_(\d{{8}})-([0-9a-f]{{8}})\{suffix}', path.name).groups()
    assert (path.parent, name) == (tmp_path / 'new', 'student.v2')
    assert date == torch.load(source, weights_only=False)['meta']['time'][:8]
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def test_in_a_folder_the_name_is_the_experiments(runs: dict, tmp_path: Path) -> None:
    assert publish(runs['resnet'][1], tmp_path).name.startswith('fnkd_resnet_2')
    bare = tmp_path / 'bare.pth'
    torch.save(dict(weight=torch.ones(2)), bare)
    path = publish(bare, f'{tmp_path}/other{os.sep}')
    assert path.parent.name == 'other'
    assert path.name.startswith(f'bare_{datetime.date.today():%Y%m%d}-')


def test_safetensors_hold_the_same(runs: dict, tmp_path: Path) -> None:
    _, source = runs['timm']
    pickled = torch.load(publish(source, tmp_path / 'x'), weights_only=True)
    path = publish(source, tmp_path / 'x.safetensors')
    stored, expected = safetensors.torch.load_file(path), pickled['state_dict']
    assert len(stored) == len(expected)
    assert_same_weights({key: stored[key] for key in expected}, expected)  # its order is its own
    with safetensors.safe_open(path, 'pt') as file:
        texts = file.metadata()
    assert texts.pop('format') == 'pt'
    assert {key: json.loads(text) for key, text in texts.items()} == pickled['meta']


def test_never_overwrites(runs: dict, tmp_path: Path) -> None:
    _, source = runs['resnet']
    path = publish(source, tmp_path / 'x')
    path.write_bytes(b'mine')
    with pytest.raises(SetupError, match='never overwritten'):
        publish(source, tmp_path / 'x')
    assert path.read_bytes() == b'mine'
    assert list(tmp_path.iterdir()) == [path]


def test_missing_ema_weights_are_refused(tmp_path: Path) -> None:
    torch.save(dict(state_dict=dict(weight=torch.ones(2))), tmp_path / 'x.pth')
    with pytest.raises(SetupError, match='holds no EMA weights'):
        publish(tmp_path / 'x.pth', tmp_path, ema=True)


@pytest.mark.parametrize('ema', [False, True])
def test_averages_where_timm_keeps_them(ema: bool, tmp_path: Path) -> None:
    torch.save(dict(state_dict=dict(w=torch.zeros(2)), state_dict_ema=dict(w=torch.ones(2))), tmp_path / 'x.pth')
    published = torch.load(publish(tmp_path / 'x.pth', tmp_path, ema=ema), weights_only=True)
    assert_same_weights(published['state_dict'], dict(w=torch.full((2,), float(ema))))


@pytest.mark.parametrize('experiment', ['../../evil', '/evil', r'..\..\evil', 'a/../evil\n', '.evil'])
def test_no_experiments_name_leads_out_of_the_folder(experiment: str, tmp_path: Path) -> None:
    meta = dict(experiment_name=f'{experiment}_20260101_000000', time='20260101_000000')
    torch.save(dict(state_dict=dict(w=torch.zeros(2)), meta=meta), tmp_path / 'x.pth')
    path = publish(tmp_path / 'x.pth', f'{tmp_path}/deep/out{os.sep}')
    assert re.fullmatch(r'evil_20260101-[0-9a-f]{8}\.pth', path.name)
    assert list((tmp_path / 'deep' / 'out').iterdir()) == [path]
    torch.save(dict(state_dict=dict(w=torch.zeros(2)), meta=dict(experiment_name='../..')), tmp_path / 'y.pth')
    assert publish(tmp_path / 'y.pth', tmp_path / 'deep').name.startswith('y_')


@pytest.mark.parametrize(
    ('checkpoint', 'message'),
    [
        (dict(meta=dict(dataset_meta='x')), "its dataset_meta is not a dict, but 'x'"),
        (dict(meta=dict(dataset_meta=dict(classes=3))), 'its classes are not a list, but 3'),
        (dict(meta=dict(dataset_meta=dict(classes='abc'))), "its classes are not a list, but 'abc'"),
    ],
)
def test_meta_of_another_shape_is_refused(checkpoint: dict, message: str, tmp_path: Path) -> None:
    torch.save(dict(state_dict=dict(w=torch.zeros(2)), **checkpoint), tmp_path / 'x.pth')
    with pytest.raises(SetupError, match=message):
        publish(tmp_path / 'x.pth', tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / 'x.pth']


def test_averages_without_the_trained_weights(tmp_path: Path) -> None:
    torch.save(dict(ema_state_dict={'module.w': torch.zeros(2)}), tmp_path / 'x.pth')
    for ema in (False, True):
        with pytest.raises(SetupError, match='no state_dict'):
            publish(tmp_path / 'x.pth', tmp_path, ema=ema)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    torch.save(dict(w=torch.zeros(2)), tmp_path / 'x.pth')
    (tmp_path / 'file').write_text('mine')
    for out in ('file/out', 'file/deeper/out', f'{"x" * 300}'):
        with pytest.raises(SetupError, match='cannot be written') as error:
            publish(tmp_path / 'x.pth', tmp_path / out)
        assert '\n' not in str(error.value)


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(dict(w=torch.zeros(2)), tmp_path / 'x.pth')

    def full(self: Path, mode: str) -> io.FileIO:
        class Full(io.FileIO):
            def write(self, data: Any) -> int:
                super().write(data[:10])
                raise OSError(errno.ENOSPC, 'No space left on device')

        return Full(self, mode)

    with monkeypatch.context() as patch, pytest.raises(SetupError, match=r'cannot be written \(No space left'):
        patch.setattr(Path, 'open', full)
        publish(tmp_path / 'x.pth', tmp_path / 'out.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['x.pth']


_STOCK = """
import importlib.util, sys
assert importlib.util.find_spec('fnkd_plugin') is None
import torch, timm
from mmpretrain import get_model
images = torch.load('images.pt')
for config, checkpoint, out in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    if config.endswith('.py'):
        model = get_model(config, pretrained=checkpoint)
    else:
        model = timm.create_model(config, num_classes=4, checkpoint_path=checkpoint)
    torch.save(model.eval()(images).detach(), out)
"""


def _without_plugin(folder: Path, *command: str) -> str:
    """Run Python where the environment's packages are all there is; what it printed."""
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_loads_without_this_plugin(runs: dict, tmp_path: Path) -> None:
    """In stock ``get_model`` and in ``timm.create_model``, with the outputs of the model that was trained."""
    images = torch.randn(2, 3, SIZE, SIZE)
    torch.save(images, tmp_path / 'images.pt')
    arguments, expected = [], {}
    for name, (runner, source) in runs.items():
        cfg = copy.deepcopy(runner.cfg)
        cfg.custom_imports = dict(imports=['fnkd_plugin'], allow_failed_imports=False)
        cfg.train_dataloader.dataset.type = 'CIFAR10'  # the tests' own data set is not there
        plain = str(dump_plain_config(cfg, tmp_path / name))
        arguments += [plain, str(publish(source, tmp_path / name)), f'{name}.pt']
        arguments += [plain, str(publish(source, tmp_path / 'ema', ema=True)), f'{name}_ema.pt']
        expected[name], expected[f'{name}_ema'] = runner.model, _ema(runner)
    for suffix in ('.pth', '.safetensors'):
        arguments += ['test_resnet', str(publish(runs['timm'][1], tmp_path / f't{suffix}', timm=True)), f't{suffix}.pt']
        expected[f't{suffix}'] = runs['timm'][0].model
    _without_plugin(tmp_path, '-c', _STOCK, *arguments)
    for name, model in expected.items():
        torch.testing.assert_close(torch.load(tmp_path / f'{name}.pt'), model.eval()(images).detach(), msg=name)


_TEST_CONFIG = """
default_scope = 'mmpretrain'
model = {model}
dataset = dict(
    type='CustomDataset', data_root='images', pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
test_dataloader = dict(
    batch_size=4, num_workers=0, dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'))
test_evaluator = dict(type='Accuracy')
test_cfg = dict()
"""


@pytest.mark.slow
def test_stock_test_tool_tests_it_without_this_plugin(runs: dict, tmp_path: Path) -> None:
    import mmpretrain
    import numpy as np
    from PIL import Image

    runner, source = runs['resnet']
    model = runner.model.eval()
    right = 0
    for i in range(8):
        pixels = np.random.RandomState(i).randint(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
        # The stock loader gives BGR, which the data preprocessor turns.
        bgr = torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)
        with torch.no_grad():
            predicted = int(model(**model.data_preprocessor(dict(inputs=[bgr])))[0].argmax())
        # Half of the labels are the trained model's predictions.
        label = predicted if i % 2 else (predicted + 1) % CLASSES
        right += predicted == label
        folder = tmp_path / 'images' / f'c{label}'
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f'{i}.png')
    for i in range(CLASSES):
        (tmp_path / 'images' / f'c{i}').mkdir(exist_ok=True)
    (tmp_path / 'plain.py').write_text(_TEST_CONFIG.format(model=STUDENTS['resnet']))
    tool = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'test.py'
    path = publish(source, tmp_path / 'x')
    _without_plugin(tmp_path, str(tool), 'plain.py', str(path), '--out', 'metrics.json', '--out-item', 'metrics')
    assert json.loads((tmp_path / 'metrics.json').read_text())['accuracy/top1'] == pytest.approx(100 * right / 8)


def test_timms_own_reading(runs: dict, tmp_path: Path) -> None:
    """timm loads a student, and MMPretrain's own TimmClassifier, strictly."""
    runner, source = runs['timm']
    path = publish(source, tmp_path / 'x', timm=True)
    theirs = timm.create_model('test_resnet', num_classes=CLASSES, checkpoint_path=str(path)).eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(theirs(images), runner.model.eval()(images))
    nested = {f'model.{key}': value for key, value in runner.model.state_dict().items()}
    torch.save(dict(state_dict=nested), tmp_path / 'nested.pth')
    other = publish(tmp_path / 'nested.pth', tmp_path / 'n', timm=True)
    theirs.load_state_dict(torch.load(other)['state_dict'])
    (tmp_path / 'nested.pth').unlink()
    with pytest.raises(SetupError, match='without --timm'):
        publish(runs['resnet'][1], tmp_path / 'y', timm=True)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, other.name}
