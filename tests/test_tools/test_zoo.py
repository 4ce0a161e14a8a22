"""Metafiles and the table of docs/zoo.md say what the results files say, and are up to date."""

import json
import runpy
import shutil
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from mmengine.config import Config

from tests.test_tools.processes import ROOT

METAFILES = sorted(ROOT.glob('configs/*/metafile.yml'))


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    monkeypatch.delitem(sys.modules, 'zoo', raising=False)
    import zoo

    return zoo


def _run(config: str, seed: int, accuracy: float, **options: float) -> dict:
    return dict(config=config, seed=seed, options=options, accuracy=accuracy)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with results of two students and their teacher."""
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs', ignore=shutil.ignore_patterns('metafile.yml'))
    (tmp_path / 'README.md').touch()
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs' / 'zoo.md').write_text('before\n<!-- zoo -->\nold\n<!-- /zoo -->\nafter\n')
    runs = {
        'teacher': _run('teacher_digits.py', 0, 99.0),
        'fnkd_trial0': _run('fnkd_digits.py', 100, 100.0),
        'fnkd_seed0': _run('fnkd_digits.py', 0, 80.0, lr=0.02),
        'fnkd_seed1': _run('fnkd_digits.py', 1, 90.0, lr=0.02),
        'fnkd_normalize_seed0': _run('fnkd_digits.py', 0, 10.0, lr=0.02, mode=1.0),  # another row of the same config
        'plain_seed0': _run('plain_digits.py', 0, 70.25),
    }
    (tmp_path / 'benchmarks').mkdir()
    (tmp_path / 'benchmarks' / 'digits.json').write_text(json.dumps(dict(runs=runs)))
    return tmp_path


def test_metafile_and_table_from_results(zoo: ModuleType, root: Path) -> None:
    zoo.main(root)
    metafile = yaml.safe_load((root / 'configs' / 'demo' / 'metafile.yml').read_text())
    models = {model['Name']: model for model in metafile['Models']}
    assert set(models) == {'teacher_digits', 'fnkd_digits', 'plain_digits'}
    fnkd = models['fnkd_digits']
    assert fnkd['Results'][0]['Metrics'] == {
        'Top 1 Accuracy': 85.0,
        'Top 1 Accuracy Standard Deviation': pytest.approx(50**0.5, abs=0.005),
    }
    assert (fnkd['Metadata']['Options'], fnkd['Metadata']['Seeds']) == ({'lr': 0.02}, [0, 1])
    assert fnkd['Metadata']['Parameters'] == 3562  # of the student alone
    assert models['plain_digits']['Results'][0]['Metrics'] == {'Top 1 Accuracy': 70.25}
    readme = (root / 'docs' / 'zoo.md').read_text()
    assert readme.startswith('before\n<!-- zoo -->\n| model') and readme.endswith('\n<!-- /zoo -->\nafter\n')
    assert '85.00 ± 7.07 | 2 | 3,562 |' in readme and '70.25 | 1 |' in readme


def test_weights_are_kept(zoo: ModuleType, root: Path) -> None:
    zoo.main(root)
    path = root / 'configs' / 'demo' / 'metafile.yml'
    metafile = yaml.safe_load(path.read_text())
    metafile['Models'][0]['Weights'] = 'https://example.org/x.pth'
    path.write_text(yaml.safe_dump(metafile))
    zoo.main(root)
    assert yaml.safe_load(path.read_text()) == metafile
    assert '[file](https://example.org/x.pth)' in (root / 'docs' / 'zoo.md').read_text()


def test_flops_of_a_known_network(zoo: ModuleType, tmp_path: Path) -> None:
    """The multiply-adds of a small ResNet-18, counted by hand."""
    config = tmp_path / 'resnet.py'
    config.write_text(
        "backbone = dict(type='ResNet', depth=18, stem_channels=4, base_channels=4)\n"
        "model = dict(type='ImageClassifier', backbone=backbone,\n"
        "    neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=4, in_channels=32))\n"
        'data_preprocessor = dict(mean=[0] * 3, std=[1] * 3, to_rgb=True)\n'
        "crop = [dict(type='RandomResizedCrop', scale=32)]\n"
        "test_crop = [dict(type='Resize', scale=40), dict(type='CenterCrop', crop_size=32)]\n"
        'train_dataloader = dict(dataset=dict(pipeline=crop))\n'
        "val_dataloader = dict(dataset=dict(type='CustomDataset', pipeline=test_crop))\n"
    )
    assert zoo.input_shape(Config.fromfile(config)) == (3, 32, 32)
    stem, classifier = 3 * 4 * 7**2 * 16**2, 32 * 4
    # Width, side: after the stem and its pooling, each stage halves the side.
    stages = [(4, 8), (8, 4), (16, 2), (32, 1)]
    blocks = sum(4 * width**2 * 9 * side**2 for width, side in stages)
    # Later stages begin with half the channels: in their first convolution, and in the shortcut.
    blocks -= sum(width**2 * 9 * side**2 // 2 - width**2 // 2 * side**2 for width, side in stages[1:])
    # Two for each number that a norm sees (each stage's shortcut but the first's has one), one for each that is pooled.
    seen = 4 * 16**2 + sum(4 * width * side**2 for width, side in stages)
    seen += sum(width * side**2 for width, side in stages[1:])
    flops = stem + blocks + classifier + 2 * seen + 32
    assert zoo.complexity(config, {})['FLOPs'] == flops
    larger = {'val_dataloader.dataset.pipeline.1.crop_size': 64, 'optim_wrapper.optimizer.lr': 0.02}
    # Four times as many pixels in each layer but the classifier.
    assert zoo.complexity(config, larger)['FLOPs'] == 4 * (flops - classifier) + classifier


def test_names(zoo: ModuleType) -> None:
    pair = 'fnkd_lite0_cub2010.py'
    commands = (pair, f'{pair} --distill kd_t1', 'fnkd_digits.py --distill kd')
    assert [*map(zoo.model_name, commands)] == ['fnkd-lite0_cub2010', 'kd-t1-lite0_cub2010', 'kd_digits']
    assert zoo.model_name('fnkd_r20_from_r56_cifar100.py --distill kd_benchmark') == 'kd-benchmark-r20_cifar100'
    smoothed = 'plain_mbv3_cub2010.py --label-smoothing alsr --label-smoothing-cfg groups=cub'
    assert zoo.model_name(smoothed) == 'alsr-mbv3_cub2010'


def test_methods_that_flags_make_of_one_config_are_models_of_their_own(zoo: ModuleType) -> None:
    kd = {'flags': ['--distill', 'kd']}
    runs = {
        'kd_seed0': {**_run('fnkd_digits.py', 0, 70.0), **kd},
        'fnkd_seed0': {**_run('fnkd_digits.py', 0, 80.0), 'flags': []},
        'kd_seed1': {**_run('fnkd_digits.py', 1, 72.0), **kd},
    }
    found = zoo.tested_runs(dict(runs=runs))
    accuracies = {key: [run['accuracy'] for run in each] for key, each in found.items()}
    assert accuracies == {'fnkd_digits.py --distill kd': [70.0, 72.0], 'fnkd_digits.py': [80.0]}


def test_readme_and_metafiles_are_up_to_date(zoo: ModuleType, tmp_path: Path) -> None:
    for name in ('configs', 'benchmarks', 'docs'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'README.md', tmp_path)
    zoo.main(tmp_path)
    assert (tmp_path / 'docs' / 'zoo.md').read_text() == (ROOT / 'docs' / 'zoo.md').read_text()
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.glob('configs/*/metafile.yml'))
    assert written == [path.relative_to(ROOT) for path in METAFILES]
    for path in written:
        assert (tmp_path / path).read_text() == (ROOT / path).read_text()


@pytest.mark.parametrize(('argument', 'code'), [('--help', 0), ('--hlep', 2), ('cub2010', 2)])
def test_an_argument_writes_nothing(
    argument: str,
    code: int,
    zoo: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / 'tools').mkdir()
    script = shutil.copy(zoo.__file__, tmp_path / 'tools')  # whose checkout is the folder above it
    readme = '<!-- zoo -->\nold\n<!-- /zoo -->\n'
    (tmp_path / 'README.md').write_text(readme)
    monkeypatch.setattr(sys, 'argv', ['zoo.py', argument])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name='__main__')
    assert stop.value.code == code
    assert 'usage' in ''.join(capsys.readouterr())
    assert (tmp_path / 'README.md').read_text() == readme


def test_each_metric_is_the_mean_of_a_results_file() -> None:
    """Counted anew from the results, not by the tool."""
    for metafile in METAFILES:
        for model in yaml.safe_load(metafile.read_text())['Models']:
            runs = json.loads((ROOT / model['Metadata']['Results File']).read_text())['runs']
            command = ' '.join([Path(model['Config']).name, *model['Metadata'].get('Flags', '').split()])
            options = model['Metadata']['Options']
            commands = {k: ' '.join([r['config'], *r['flags']]) for k, r in runs.items()}
            of_config = [r for k, r in runs.items() if commands[k] == command and '_trial' not in k]
            tested = [r for r in of_config if r['options'] == options]
            # Rows that share a config differ in options; the first is the model's.
            assert of_config[0]['options'] == options
            assert sorted(r['seed'] for r in tested) == model['Metadata']['Seeds']
            mean = statistics.fmean(r['accuracy'] for r in tested)
            assert model['Results'][0]['Metrics']['Top 1 Accuracy'] == pytest.approx(mean, abs=0.00501)
