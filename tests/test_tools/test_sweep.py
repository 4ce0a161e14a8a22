"""``tools/sweep.py``, and the tables and counts that come from its results files."""

import importlib
import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from mmengine.registry import init_default_scope

from fnkd_plugin.errors import SetupError
from tests.helpers import TIMM_HEADS
from tests.test_tools.processes import ROOT, Tools

DOCS = ROOT / 'docs' / 'compatibility.md'
RESULTS = {what: ROOT / 'benchmarks' / f'sweep_{what}.json' for what in ('mmpretrain', 'timm')}


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _imported('timm_families', monkeypatch)


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _imported('mmpretrain_configs', monkeypatch)


def _imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    init_default_scope('mmpretrain')
    return importlib.import_module(f'sweeps.{name}')


def _give(families: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, **options: object) -> None:
    size = timm.get_pretrained_cfg(name).input_size[-1]
    about = dict(model=name, options=options, size=size, parameters=0)
    monkeypatch.setattr(families, 'smallest', lambda family: (dict(model=name, **options), about))


# MMPretrain


@pytest.mark.parametrize(
    ('name', 'keys'),
    [
        ('lenet/lenet5_mnist.py', {'method'}),
        ('deit/deit-tiny-distilled_4xb256_in1k.py', {'method', 'reason'}),
        ('arcface/resnet50-arcface_8xb32_inshop.py', {'other'}),
        ('eva/eva-g-p14_headless.py', {'other'}),
        ('levit/deploy/levit-128s_8xb256_in1k.py', {'broken'}),
        ('nothing.py', {'unreadable'}),
    ],
)
def test_outcomes_of_configs(name: str, keys: set[str], configs: ModuleType) -> None:
    assert set(configs.attempt(name)) == keys


def test_files_are_named_by_their_place_in_mmpretrain(configs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError(f'{configs.SHIPPED}/resnet/a.py is no config')

    monkeypatch.setattr(configs, 'load_config', fail)
    assert configs.attempt('a.py') == dict(unreadable='RuntimeError: resnet/a.py is no config')


def test_a_refused_config_and_one_that_fails_with_a_teacher_alone(
    configs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(method: str) -> None:
        raise SetupError(f'no {method}')

    name = 'lenet/lenet5_mnist.py'
    monkeypatch.setattr(configs, 'distilled', lambda cfg, student, method: refuse(method))
    assert configs.attempt(name) == dict(refused='no kd')
    monkeypatch.setattr(configs, 'distilled', lambda cfg, student, method: 1 / 0)
    assert configs.attempt(name) == dict(failed='ZeroDivisionError: division by zero')


def test_the_table_of_configs(configs: ModuleType) -> None:
    entries = {
        'a.py': dict(broken='x|y'),
        'b.py': dict(method='fnkd'),
        'c.py': dict(method='kd', reason='two heads'),
        'd.py': dict(method='kd', reason='two heads'),
        'e.py': dict(other='MoCo'),
    }
    assert configs.table(entries).splitlines() == [
        '| configs |  |',
        '| --: | --- |',
        '| 1 | FNKD and KD |',
        '| 2 | KD alone |',
        '| 1 | also fails without a teacher |',
        '| 1 | not a classifier |',
        '',
        '|  | why | configs |',
        '| --- | --- | --- |',
        '| KD alone | two heads | c, d |',
        '| also fails without a teacher | x/y | a |',
    ]


@pytest.mark.slow
def test_a_second_call_goes_on_and_tries_again_what_failed(
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    from fnkd_plugin.cli.doctor import surroundings

    out = tmp_path / 'sweep.json'
    failed, known, new = (f'eva/eva-{name}_headless.py' for name in ('g-p14', 'g-p16', 'l-p14'))
    done = {failed: dict(failed='once'), known: dict(other='once')}
    out.write_text(json.dumps(dict(versions={}, entries=done)))
    refused = tools.run('sweep.py', 'mmpretrain', '--out', out, '--only', 'headless')
    assert refused.code == 2 and 'other versions' in refused.output
    out.write_text(json.dumps({**surroundings(), 'entries': done}))
    assert tools.run('sweep.py', 'mmpretrain', '--out', out, '--only', 'headless').code == 0
    entries = json.loads(out.read_text())['entries']
    assert entries[failed]['other'] == entries[new]['other'] == 'features' and 'seconds' in entries[failed]
    assert entries[known] == dict(other='once') and all('headless' in name for name in entries)
    docs = tmp_path / 'docs.md'
    docs.write_text('before\n<!-- mmpretrain -->\n<!-- /mmpretrain -->\nafter\n')
    assert tools.run('sweep.py', 'mmpretrain', '--out', out, '--docs', docs).code == 0
    assert docs.read_text().startswith('before\n<!-- mmpretrain -->\n| configs |') and docs.read_text().endswith(
        'after\n'
    )
    assert json.loads(out.read_text())['entries'] == entries


# timm


def test_the_smallest_classifier_of_a_family(families: ModuleType) -> None:
    def size(name: str) -> int:
        with torch.device('meta'):
            return sum(p.numel() for p in timm.create_model(name, num_classes=families.CLASSES).parameters())

    arguments, about = families.smallest('efficientvit_msra')
    sizes = {name: size(name) for name in timm.list_models(module='efficientvit_msra')}
    assert (arguments, about['parameters']) == (dict(model=min(sizes, key=sizes.get)), min(sizes.values()))
    assert about['size'] == 224, 'a fixed size is kept'
    arguments, about = families.smallest('gemma4_vit')
    assert arguments == dict(model='gemma4_vit_167m', depth=2), 'encoders are smaller, but classify nothing'
    assert about['parameters'] < 40_000_000


@pytest.mark.parametrize('kind', ['convolution', 'mean of a list'])
def test_a_family_in_both_roles(kind: str, families: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    name, options, where = TIMM_HEADS[kind]
    _give(families, monkeypatch, name, **options)
    found = families.attempt('any')
    method = 'kd' if where is None else 'fnkd'
    assert (found['student'], found['teacher']) == (method, method), found
    assert found.get('rescaling', 0) < 1e-5 and ('reason' in found) == (where is None)
    row = f'| any | {name} '
    assert row in families.table(dict(any=found)) and 'failed' not in families.table(dict(any=found))


def test_what_does_not_hold_is_a_failure(families: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    name, options, _ = TIMM_HEADS['convolution']
    _give(families, monkeypatch, name, **options)
    monkeypatch.setattr(families, 'scale_by_feature_norm', lambda logits, *_, **__: logits)
    found = families.attempt('any')
    assert 'rescaled logits' in found['failed'] and 'student' not in found
    assert '| failed: MismatchError: rescaled logits' in families.table(dict(any=found))


def test_a_family_without_a_classifier_is_refused(families: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    _give(families, monkeypatch, 'gemma4_vit_167m_enc', depth=1, embed_dim=16, num_heads=1)
    found = families.attempt('any')
    assert 'gemma4_vit_167m_enc' in found['refused'] and 'has no classifier' in found['refused']


# The committed results


def test_docs_hold_the_results(configs: ModuleType, families: ModuleType) -> None:
    docs = DOCS.read_text()
    for what, sweep in dict(mmpretrain=configs, timm=families).items():
        table = sweep.table(json.loads(RESULTS[what].read_text())['entries'])
        assert f'<!-- {what} -->\n{table}\n<!-- /{what} -->' in docs


def test_no_family_is_left_out() -> None:
    results = json.loads(RESULTS['timm'].read_text())
    if results['versions']['timm'] != timm.__version__:
        pytest.skip('results of another timm')
    assert sorted(results['entries']) == sorted(timm.list_modules())
    assert not [family for family, entry in results['entries'].items() if 'failed' in entry]


def test_the_docs_count_the_results() -> None:
    """Counted anew from the files, not by the tool."""
    text = ' '.join((ROOT / 'docs' / 'teachers.md').read_text().split())
    families = json.loads(RESULTS['timm'].read_text())['entries'].values()
    configs = json.loads(RESULTS['mmpretrain'].read_text())['entries'].values()
    roles = Counter((entry.get('student'), entry.get('teacher')) for entry in families)
    classifiers = Counter(entry.get('method', 'none') for entry in configs if not {'other', 'unreadable'} & set(entry))
    assert f"{roles['fnkd', 'fnkd']} of timm's {len(families)} families" in text
    assert f"{classifiers['fnkd']} of MMPretrain's {classifiers.total()} classification configs" in text
