import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from fnkd_plugin.cli import analyze
from fnkd_plugin.errors import SetupError
from tests.helpers import build, timm_checkpoint
from tests.test_tools.configs import write_configs
from tests.test_tools.processes import Tools

pytestmark = pytest.mark.upstream
pytest.importorskip('sklearn')
pytest.importorskip('matplotlib')
pytest.importorskip('jinja2')
pytest.importorskip('torchmetrics')


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    path = tmp_path / 'groups.txt'
    path.write_text('a\tvowel\nb\tconsonant\nc\tconsonant\nd\tconsonant\n')
    return path


def _analyse(tools: Tools, config: Path, weights: Path, out: Path, *options: object) -> dict:
    done = tools.run('analyze.py', config, weights, '--out', out, *options)
    assert done.code == 0, done.output
    return json.loads((out / 'analysis.json').read_text())


def test_train_on_flipped_labels_then_audit(tools: Tools, tmp_path: Path, groups: Path) -> None:
    plain, _ = write_configs(tmp_path, tmp_path)
    flips = ['type=FlippedLabels', 'of=NoiseImages', 'rate=0.25', f'groups={groups}']
    options = ['--cfg-options', *(f'train_dataloader.dataset.{flip}' for flip in flips)]
    work = tmp_path / 'work'
    trained = tools.run('train.py', plain, '--work-dir', work, *options)
    assert trained.code == 0, trained.output
    numbers = _analyse(tools, plain, work / 'epoch_3.pth', tmp_path / 'out', '--split', 'train', *options)
    audited = numbers['audits']['flipped in the data set']
    # Of the 12 labels with neighbours a quarter; all that the audit counts follows from the lines of images.
    assert audited['wrong'] == 3
    lines = [json.loads(line) for line in (tmp_path / 'out' / 'images.jsonl').read_text().splitlines()]
    assert sum(line['label'] != line['clean_label'] for line in lines) == 3
    assert [line['clean_label'] for line in lines] == [i % 4 for i in range(16)]
    assert numbers['accuracy'] == sum(line['prediction'] == line['clean_label'] for line in lines) / 16
    wrong = [line['loss/given'] for line in lines if line['label'] != line['clean_label']]
    # Labels of the first class, which has no neighbours, could not have been flipped.
    right = [line['loss/given'] for line in lines if line['label'] == line['clean_label'] != 0]
    assert (len(wrong), len(right)) == (3, 9)
    pairs = [(a > b) + 0.5 * (a == b) for a in wrong for b in right]
    assert audited['indicators']['loss']['auroc'] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_the_page_holds_everything_and_opens_offline(tools: Tools, tmp_path: Path, groups: Path) -> None:
    teacher = timm_checkpoint(tmp_path, 'test_resnet')
    plain, distilled = write_configs(tmp_path, teacher)
    work = tmp_path / 'work'
    trained = tools.run('train.py', plain, '--work-dir', work)
    assert trained.code == 0, trained.output
    out = tmp_path / 'out'
    options = ['--groups', groups, '--flip', 0.2, 0.3, '--classes', 'a', 2, '--split', 'train', '--temperature', 2]
    numbers = _analyse(tools, distilled, work / 'epoch_3.pth', out, *options)
    page = (out / 'report.html').read_text()
    assert len(re.findall(r'src="data:image/svg\+xml;base64,', page)) == 11
    assert 'src="data:image/png;base64,' in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert [row['index'] for row in numbers['class_rows']] == [0, 2]
    assert numbers['policy']['temperature'] == 2
    assert set(numbers['audits']) == {
        f'flipped {where}, {rate}' for where in ('uniformly', 'within A(x)') for rate in ('20%', '30%')
    }
    for name, audited in numbers['audits'].items():
        assert audited['verdict'] in page.replace('&#39;', "'"), name
    assert {'model', 'teacher'} == set(numbers['norms']) == set(numbers['confusions']['near'])
    assert {'loss', 'entropy', 'disagreement'} == set(numbers['curves'])
    for method in ('LSR', 'ALSR', 'KD', 'FNKD'):
        assert all(method in card['total'] for card in numbers['compensations'])


def test_a_missing_checkpoint_ends_in_one_line(tools: Tools, tmp_path: Path) -> None:
    plain, _ = write_configs(tmp_path, tmp_path)
    done = tools.run('analyze.py', plain, tmp_path / 'none.pth', '--out', tmp_path / 'out')
    assert done.code == 1
    assert re.search(r'^error: .*none\.pth', done.output, re.MULTILINE)
    assert 'Traceback' not in done.output


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--classes', 'e'], '--classes: e '),
        (['--flip', '0.01'], '0 of 10'),
        (['--tau', '-1'], '--tau'),
    ],
)
def test_bad_options_raise_before_anything_is_written(options: list[str], message: str, tmp_path: Path) -> None:
    plain, _ = write_configs(tmp_path, tmp_path)
    weights = tmp_path / 'weights.pth'
    torch.save(build(Config.fromfile(plain).model).state_dict(), weights)
    with pytest.raises(SetupError, match=message):
        analyze.main([str(plain), str(weights), '--out', str(tmp_path / 'out'), *options])
    assert not (tmp_path / 'out').exists()
