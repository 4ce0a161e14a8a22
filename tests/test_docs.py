"""README.md and docs/: commands parse, links lead somewhere, pictures are drawn, loops run."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import fnkd_cli
from fnkd_cli.arguments import PARSERS
from tests.test_stack import run_bare

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
TOOLS = {'train.py': 'train', 'cache_teacher.py': 'cache', 'analyze.py': 'analyze', 'publish_model.py': 'publish'}


def commands_of(page: Path) -> list[list[str]]:
    """Of the shell blocks, and of code in lines that begins with ``fnkd`` and has arguments."""
    text = page.read_text()
    lines = [
        line
        for block in re.findall(r'```bash\n(.*?)```', text, re.DOTALL)
        for line in block.replace('\\\n', ' ').splitlines()
    ]
    lines += [' '.join(code.split()) for code in re.findall(r'`(fnkd [^`]*)`', text) if '...' not in code]
    variables = dict(re.findall(r"^([A-Z]+)='(.*?)'", '\n'.join(lines), re.MULTILINE))
    lines = [re.sub(r'\$([A-Z]+)', lambda found: variables.get(found[1], found[0]), line) for line in lines]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


COMMANDS = [
    pytest.param(words, id=f'{page.stem}: {" ".join(words[:4])}')
    for page in PAGES
    for words in commands_of(page)
    if words[0] == 'fnkd' or words[:2] == ['python', 'tools'] or any('tools/' in word for word in words[:2])
]


@pytest.mark.parametrize('words', COMMANDS)
def test_commands_parse(words: list[str]) -> None:
    """By the parsers that they run into, which know every flag."""
    if words[0] == 'fnkd':
        name, arguments = words[1], words[2:]
        if name not in PARSERS or (name == 'train' and not any('.py' in word for word in arguments)):
            command = typer.main.get_command(fnkd_cli.app)
            assert name in command.commands
            if arguments:  # alone, it is the command's name in a sentence
                split = fnkd_cli._one_value_each(arguments, '--methods')
                assert command.commands[name].make_context(name, split)
            return
        PARSERS[name](None).parse_args(arguments) if arguments else None
        return
    tool = next(word for word in words if 'tools/' in word)
    assert (ROOT / tool).is_file()
    if (name := Path(tool).name) in TOOLS:
        PARSERS[TOOLS[name]](None).parse_args(words[words.index(tool) + 1 :])


@pytest.mark.parametrize('page', PAGES, ids=[page.stem for page in PAGES])
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r'\]\((?!https?://|#)([^)#\s]+)', page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_readme_is_one_screen_that_sells_and_one_that_starts() -> None:
    text = (ROOT / 'README.md').read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1000


# The rows of the table of learning rates: the beginnings of the runs' names, and an option that the row fixes.
RATE_ROWS: dict[str, dict[str, float]] = {
    'plain': {},
    'lsr': {'model.loss.eps': 0.1},
    'he': {'model.head.scale': 16},
    'kd': {'model.head.soft_loss.temperature': 4},
    'kd_fnkd_s_weights_and_t': {},
    'fnkd_normalize': {},
}


def test_the_table_of_learning_rates_is_that_of_the_results() -> None:
    """``tools/reproduce.py --docs`` does not write this table."""
    stored = [
        json.loads((ROOT / 'benchmarks' / f'{name}.json').read_text())['runs'] for name in ('cub2010', 'curves_cub2010')
    ]
    tried = [(name, run) for name, run in stored[0].items() if '_trial' in name]
    tried.append(('kd_trial4', stored[1]['KD at a learning rate of 0.02']))
    section = (ROOT / 'docs' / 'results.md').read_text().split('### The learning rate')[1]
    head, _, *rows = [line.split('|')[1:-1] for line in section.strip().split('\n\n')[0].splitlines()]
    for (prefix, fixed), (_, *cells) in zip(RATE_ROWS.items(), rows, strict=True):
        shown = {float(rate): float(cell) for rate, cell in zip(head[1:], cells, strict=True) if cell.strip()}
        assert shown == {
            run['options']['optim_wrapper.optimizer.lr']: pytest.approx(run['accuracy'], abs=0.0501)
            for name, run in tried
            if re.fullmatch(rf'{prefix}_trial\d', name) and fixed.items() <= run['options'].items()
        }


def _pictures() -> Any:
    spec = importlib.util.spec_from_file_location('pictures', ROOT / 'docs' / 'pictures.py')
    assert spec is not None and spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    return pictures


def test_pictures_are_drawn_from_results(tmp_path: Path) -> None:
    pictures = _pictures()
    assert pictures.accuracies({'kd_seed0': {'accuracy': 1.0}, 'kd_t1_seed0': {'accuracy': 2.0}}, 'kd') == [1.0]
    pictures.draw_method(tmp_path / 'method.svg')
    pictures.draw_results(tmp_path / 'results.svg')
    pictures.draw_curves(tmp_path / 'curves.svg')
    pictures.draw_norms(tmp_path / 'norms.svg')
    pictures.draw_gallery(tmp_path / 'gallery.svg')
    drawn = [path.read_text() for path in tmp_path.iterdir()]
    assert len(drawn) == 5 and all('<svg' in text for text in drawn)


def test_norms_are_collected_from_an_analysis(tmp_path: Path) -> None:
    rows = [dict(index=k, label=k % 2, prediction=1.0, norm=3.00004, entropy=0.1) for k in range(2)]
    (tmp_path / 'images.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    (tmp_path / 'analysis.json').write_text(json.dumps(dict(made=dict(command='c'))))
    found = _pictures().collect_norms(tmp_path)
    assert found == dict(made=dict(command='c'), index=[0, 1], label=[0, 1], prediction=[1, 1], norm=[3.0, 3.0])


def test_the_norms_of_digits_are_those_of_the_results_file() -> None:
    label, prediction, norm = _pictures().norms_of_digits()
    text = ' '.join((ROOT / 'docs' / 'analyze.md').read_text().split())
    wrong = label != prediction
    assert f'{wrong.sum()} of {len(norm)}' in text
    assert f'mean norm of {norm[wrong].mean():.1f}, the others of {norm[~wrong].mean():.1f}' in text


def test_curves_are_collected_from_logs(tmp_path: Path) -> None:
    pictures = _pictures()
    for method in pictures.CURVES:
        log = tmp_path / f'{method}_seed0_0a1b' / '20260101' / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        rows = [dict(step=20, student_norm=3.0, hard_ce=5.0, tau=6.0), dict(step=1, **{'accuracy/top1': 9.0})]
        log.write_text('\n'.join(map(json.dumps, rows)) + '\n')
    found = pictures.collect_curves(tmp_path, range(1))
    assert found['kd_seed0'] == dict(step=[20], norm=[3.0], loss=[5.0], tau=6.0) and len(found) == 3


def test_the_norms_of_cifar100_are_those_of_the_results_file() -> None:
    found = json.loads((ROOT / 'benchmarks' / 'norms_cifar100.json').read_text())
    text = ' '.join((ROOT / 'docs' / 'analyze.md').read_text().split())
    means = [found['norms']['model'][side]['mean'] for side in ('right', 'wrong')]
    assert 'mean ‖f‖ of {:.1f}, wrong ones of {:.1f}'.format(*means) in text
    for of in found['error_detection'].values():
        assert f'{of["auroc"]:.3f} ± {1.96 * of["standard_error"]:.3f}' in text
    assert found['made']['command'].split()[3] in text


BOTH_LOOPS = """
import copy, re
from pathlib import Path
import torch
from torch import nn

section = Path('docs/configs.md').read_text().split('## Without MMPretrain')[1].split('\\n## ')[0]
with_task, on_tensors = re.findall('```python\\n(.*?)```', section, re.DOTALL)
assert 'FNKDTask' in with_task and 'scale_by_feature_norm' in on_tensors

def model():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(backbone, nn.Linear(32, 4))

torch.manual_seed(0)
teacher, start = model(), model()
loader = [(6.1 * torch.randn(4, 3, 32, 32), torch.arange(4)) for _ in range(3)]
norms = teacher[0](loader[0][0]).norm(dim=1)
assert norms.min() < 8 < norms.max(), norms

student = copy.deepcopy(start)
exec(with_task, dict(student=student, teacher=teacher, loader=loader))

other = copy.deepcopy(start)
names = dict(zip(('student_backbone', 'student_fc'), other)) | dict(zip(('teacher_backbone', 'teacher_fc'), teacher))
exec(on_tensors, dict(names, loader=loader, optimizer=torch.optim.SGD(other.parameters(), lr=0.1)))

assert (student[1].weight - start[1].weight).norm() > 0.1
for found, expected in zip(student.parameters(), other.parameters(), strict=True):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
"""


@pytest.mark.slow
@pytest.mark.upstream
def test_both_loops_run_and_agree() -> None:
    done = run_bare(BOTH_LOOPS)
    assert done.returncode == 0, done.stderr[-2000:]
