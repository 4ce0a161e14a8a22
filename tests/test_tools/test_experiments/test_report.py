"""Tables of results."""

import io
import math
from pathlib import Path

import pytest
from scipy import stats


def test_deviation_is_the_samples() -> None:
    from experiments.report import deviation

    assert deviation([1.0, 3.0]) == pytest.approx(2**0.5)
    assert deviation([1.0]) is None


def test_intervals_are_students_of_paired_differences() -> None:
    from experiments.report import paired_difference

    ours, theirs = {0: 50.0, 1: 53.0, 2: 51.0, 3: 99.0}, {2: 50.5, 1: 51.0, 0: 49.5}
    mean, half = paired_difference(ours, theirs)
    interval = stats.ttest_rel([50, 53, 51], [49.5, 51, 50.5]).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high))
    mean, half = paired_difference({0: 2.0}, {0: 1.0})
    assert mean == 1 and math.isnan(half)
    assert math.isnan(paired_difference({0: 2.0}, {})[0])


def _study(tmp_path: Path, seeds: int):
    from experiments.results import Results
    from experiments.study import Study
    from experiments.tables import digits

    study = Study(digits(2), Results(tmp_path / 'r.json'), tmp_path, range(seeds))
    measures = dict(nll=0.5, ece=3.0, checkpoint='x.pth')
    study.results.add((study.teacher, dict(accuracy=99.0, **measures)))
    for method in study.table.methods[:2]:
        study.results.add(*((job, dict(accuracy=50.0 + i, **measures)) for i, job in enumerate(study.trials(method))))
        better = 80.0 + (method.title == 'LSR')
        finals = study.finals(method)
        study.results.add(*((job, dict(accuracy=better + job.seed, agreement=90.0, **measures)) for job in finals))
    return study


def test_rows_hold_what_has_run(tmp_path: Path) -> None:
    from experiments.report import as_markdown, columns, rows

    study = _study(tmp_path, 3)
    found = rows(study)
    assert [row[0] for row in found] == ['plain', 'LSR', 'teacher']
    assert found[0][:4] == ['plain', '81.0 ± 1.0', '', ''] and found[1][1:3] == ['82.0 ± 1.0', '+1.0 ± 0.0']
    assert found[1][-1].startswith('lr 0.04, ε ')  # the better of two trials
    assert columns(study)[2] == 'over plain' and all(len(row) == len(columns(study)) for row in found)
    lines = as_markdown(_study(tmp_path / 'again', 3)).splitlines()
    assert '3 seeds, 2 trials per method' in lines[0]
    # Nothing has been compared with KD, and no best epoch is known, so there are no such columns.
    assert 'over KD' not in lines[2] and {line.count('|') for line in lines[2:]} == {len(columns(study)) - 1}


def test_the_best_epoch_stands_beside_the_last_where_it_is_known(tmp_path: Path) -> None:
    from experiments.report import as_markdown

    study = _study(tmp_path, 3)
    assert 'best epoch' not in as_markdown(study)
    for job in study.finals(study.table.methods[1]):
        study.results.runs[job.name]['best_accuracy'] = 90.0 + job.seed
    lines = as_markdown(study).splitlines()
    column = lines[2].split('|').index(' best epoch, % ')
    assert [line.split('|')[column].strip() for line in lines[4:]] == ['', '91.0 ± 1.0', '']


def test_numbers_fit_a_terminal_of_80_columns(tmp_path: Path) -> None:
    from experiments.report import as_rich
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(as_rich(_study(tmp_path, 3)))
    text = console.export_text()
    line = next(line for line in text.splitlines() if line.strip().startswith('LSR '))
    assert '82.0 ± 1.0' in line and '+1.0 ± 0.0' in line and '0.50 ± 0.00' in line and '…' not in text
    assert 'LSR: lr 0.04, ε ' in text


def test_unequal_counts_of_seeds_are_said(tmp_path: Path) -> None:
    from experiments.report import as_markdown

    study = _study(tmp_path, 3)
    del study.results.runs['lsr_seed2']
    assert '; 2 to 3 seeds, ' in as_markdown(study)
    for name in [name for name in study.results.runs if '_seed' in name]:
        del study.results.runs[name]
    assert '; no seed tested yet, ' in as_markdown(study)


def test_one_seed_claims_no_spread(tmp_path: Path) -> None:
    from experiments.report import as_markdown, rows

    assert '; 1 seed, ' in as_markdown(_study(tmp_path / 'other', 1))

    assert rows(_study(tmp_path, 1))[1][1:3] == ['81.0', '+1.0']


def test_the_first_method_is_what_the_others_are_compared_with(tmp_path: Path) -> None:
    from dataclasses import replace

    from experiments.report import as_markdown

    study = _study(tmp_path, 3)
    study.table = replace(study.table, methods=study.table.methods[1::-1])
    lines = as_markdown(study).splitlines()
    assert 'over LSR' in lines[2] and '-1.0 ± 0.0' in next(line for line in lines if line.startswith('| plain'))
