"""``tools/sweep.py`` on configs of each outcome."""

import json
from pathlib import Path

from tests.test_tools.processes import Nursery


def test_each_outcome_is_recorded_and_shown(tools: Nursery, tmp_path: Path) -> None:
    out = tmp_path / 'sweep.json'
    for only in ('lenet5', 'arcface', 'simclr/simclr_resnet50_8xb32', 'deit-tiny_4xb256'):
        done = tools.run('sweep.py', '--out', out, '--only', only)
        assert done.code == 0, done.output
    results = json.loads(out.read_text())
    assert {name.split('/')[0]: set(result) for name, result in results.items()} == {
        'lenet': {'method', 'refused', 'seconds'},
        'arcface': {'other'},
        'simclr': {'other'},
        'deit': {'method', 'refused', 'seconds'},
    }
    assert results['lenet/lenet5_mnist.py']['method'] == 'fnkd'
    results['broken.py'] = dict(reason='a|b')
    out.write_text(json.dumps(results))
    before = out.read_text()
    shown = tools.run('sweep.py', '--out', out, '--show').output
    assert '| 2 | FNKD and KD |' in shown and '| 1 | neither |' in shown and '| 2 | no classification |' in shown
    assert '| broken.py | a/b |' in shown and 'lenet' not in shown
    assert out.read_text() == before
