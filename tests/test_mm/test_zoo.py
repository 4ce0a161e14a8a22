"""The zoo in MMPretrain's hub: names, student configs, and messages where weights are missing."""

import hashlib
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import modelindex
import pytest
import torch
import yaml
from mmpretrain import get_model, list_models
from mmpretrain.apis.model import ModelHub
from mmpretrain.registry import DATASETS

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.checkpoints import read_checkpoint
from fnkd_plugin.mm.config import load_config, plain_model, without_pretrained
from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher
from fnkd_plugin.mm.publish import publish
from fnkd_plugin.mm.zoo import register_zoo, zoo_root
from tests.helpers import assert_same_weights, build

pytestmark = pytest.mark.upstream
ROOT = Path(__file__).resolve().parents[2]
NAME = 'test-of-the-zoo_digits'


def _index(root: Path, **fields: str) -> None:
    model = {'Name': NAME, 'Config': 'configs/demo/fnkd_digits.py', **fields}
    (root / 'configs' / 'demo' / 'metafile.yml').write_text(yaml.safe_dump({'Models': [model]}))


@pytest.fixture
def zoo(tmp_path: Path) -> Iterator[Path]:
    """A copy of the checkout's index and configs with one model, in the hub while the test runs."""
    list_models()
    known = dict(ModelHub._models_dict)
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs', ignore=shutil.ignore_patterns('metafile.yml'))
    shutil.copy(ROOT / 'model-index.yml', tmp_path)
    _index(tmp_path)
    yield tmp_path
    ModelHub._models_dict = known


def test_a_model_is_known_and_is_the_student_alone(zoo: Path) -> None:
    register_zoo(zoo)
    assert list_models('test-of-the-zoo') == [NAME]
    model = get_model(NAME)  # needs no teacher, though the config is a distilled one
    expected = build(without_pretrained(plain_model(load_config(zoo / 'configs' / 'demo' / 'fnkd_digits.py'))))
    assert type(model) is type(expected)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}


def test_weights_that_are_not_published_are_not_random_in_silence(zoo: Path) -> None:
    register_zoo(zoo)
    with pytest.raises(SetupError, match=r'not published. Train it with tools/train.py .*fnkd_digits.py'):
        get_model(NAME, pretrained=True)


def test_weights_of_ones_own_and_published_ones_are_loaded(zoo: Path) -> None:
    model = build(without_pretrained(plain_model(load_config(zoo / 'configs' / 'demo' / 'fnkd_digits.py'))), seed=5)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=['a', 'b']))), zoo / 'epoch.pth')
    path = str(publish(zoo / 'epoch.pth', zoo / 'student'))
    _index(zoo, Weights=path)
    register_zoo(zoo)
    for pretrained in (True, path):
        loaded = get_model(NAME, pretrained=pretrained)
        assert_same_weights(loaded.state_dict(), model.state_dict())
        assert loaded._dataset_meta == dict(classes=['a', 'b'])


def test_an_unpublished_model_teaches_with_a_file(zoo: Path) -> None:
    register_zoo(zoo)
    with pytest.raises(SetupError, match=r'not published.* of a teacher checkpoint=FILE or --teacher-checkpoint FILE'):
        MMPretrainTeacher(NAME)
    model = build(without_pretrained(plain_model(load_config(zoo / 'configs' / 'demo' / 'fnkd_digits.py'))), seed=5)
    torch.save(dict(state_dict=model.state_dict()), zoo / 'epoch.pth')
    assert_same_weights(MMPretrainTeacher(NAME, zoo / 'epoch.pth').model.state_dict(), model.state_dict())


def test_the_checkouts_index_is_whole() -> None:
    """The format's own check finds nothing, and each name is known after importing the plugin."""
    assert zoo_root() == ROOT
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    assert index.check(silent=True) == []
    metafiles = [yaml.safe_load(path.read_text()) for path in ROOT.glob('configs/*/metafile.yml')]
    names = [model['Name'] for metafile in metafiles for model in metafile['Models']]
    assert sorted(model.name for model in index.models) == sorted(names)
    assert set(names) <= set(list_models())
    for model in index.models:
        assert (ROOT / model.config).is_file()


@pytest.mark.slow
def test_importing_reads_no_index() -> None:
    """It is read with MMPretrain's own, at the first use, so that an import costs nothing."""
    code = (
        'import fnkd_plugin; from mmpretrain.apis.model import ModelHub, list_models; '
        'before = len(ModelHub._models_dict); list_models(); '
        'from fnkd_plugin.mm.zoo import ZooModel; '
        'kinds = [type(m) for m in ModelHub._models_dict.values()]; print(before, len(kinds), kinds.count(ZooModel))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after, ours = map(int, done.stdout.split()[-3:])
    assert before == 0
    assert after > 500
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert ours == len(modelindex.load(str(ROOT / 'model-index.yml')).models.data)


@pytest.mark.parametrize('name', ['fnkd-r20_cifar100', 'plain-r56_cifar100'])
def test_published_weights_are_in_the_package_and_small(name: str) -> None:
    model = get_model(name, pretrained=True)
    path = Path(ModelHub.get(name).weights)
    assert path.is_relative_to(zoo_root()) and path.stat().st_size < 3e6
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem.rpartition('-')[2])
    state = read_checkpoint(path)['state_dict']
    assert set(state) == set(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key].to(value)) and (value.dtype == torch.float32 or 'batches' in key)


def test_published_students_have_the_accuracy_of_the_index() -> None:
    data = Path(os.environ.get('FNKD_DATA', 'data')) / 'cifar100' / 'cifar-100-python' / 'test'
    if not data.is_file():
        pytest.skip(f'needs {data}')
    model = get_model('fnkd-r20_cifar100', pretrained=True).eval()
    images = DATASETS.build(dict(type='CIFAR100', data_root=str(data.parents[1]), split='test', serialize_data=False))
    part = images.data_list[:1000]
    batch = torch.stack([torch.from_numpy(sample['img'].transpose(2, 0, 1).copy()) for sample in part])
    with torch.no_grad():
        scores = model(model.data_preprocessor(dict(inputs=batch))['inputs'], mode='tensor')
    scores = scores[0] if isinstance(scores, tuple) else scores
    labels = torch.tensor([sample['gt_label'] for sample in part])
    accuracy = 100 * (scores.argmax(1) == labels).float().mean().item()
    [model_of_index] = [m for m in _models('cifar100') if m['Name'] == 'fnkd-r20_cifar100']
    assert accuracy == pytest.approx(model_of_index['Results'][0]['Metrics']['Top 1 Accuracy'], abs=4.5)  # 3 deviations


def _models(folder: str) -> list[dict]:
    return yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())['Models']
