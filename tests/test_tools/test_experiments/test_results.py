"""Measures, and the file that keeps them."""

import json
from pathlib import Path

import numpy as np
import pytest


def _predictions(path: Path, scores: list, labels: list) -> Path:
    np.savez(path, scores=np.array(scores, np.float32), labels=np.array(labels))
    return path


def test_measures_are_those_computed_by_hand(tmp_path: Path) -> None:
    from experiments.results import measure

    scores = [[0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.125, 0.125, 0.75], [0.5, 0.25, 0.25]]
    mine = _predictions(tmp_path / 'mine.npz', scores, [0, 1, 0, 0])
    theirs = _predictions(tmp_path / 'theirs.npz', [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]], [0, 1, 0, 0])
    found = measure(mine, theirs)
    assert found['accuracy'] == 75 and found['agreement'] == 50
    assert found['nll'] == pytest.approx(-np.log([0.75, 0.75, 0.125, 0.5]).mean(), abs=1e-4)
    # Two bins: three images of confidence 3/4, two of them right, and one of confidence 1/2, right.
    assert found['ece'] == pytest.approx(100 * (0.75 * abs(0.75 - 2 / 3) + 0.25 * 0.5), abs=1e-3)


def test_agreement_needs_the_same_images(tmp_path: Path) -> None:
    from experiments.results import measure

    mine = _predictions(tmp_path / 'mine.npz', [[1, 0]], [0])
    theirs = _predictions(tmp_path / 'theirs.npz', [[0, 1]], [1])
    assert 'agreement' not in measure(mine, theirs) and 'agreement' not in measure(mine, None)


def test_an_impossible_score_has_a_finite_nll(tmp_path: Path) -> None:
    from experiments.results import measure

    assert np.isfinite(measure(_predictions(tmp_path / 'a.npz', [[1, 0]], [1]), None)['nll'])


def test_the_file_grows_and_other_options_are_refused(tmp_path: Path) -> None:
    from experiments.job import Job
    from experiments.results import Results

    path = tmp_path / 'deep' / 'table.json'
    job = Job('kd_seed0', Path('kd.py'), tmp_path, 0, {'lr': 0.1})
    Results(path).add((job, {'accuracy': 50.0}))
    Results(path).add((Job('kd_seed1', Path('kd.py'), tmp_path, 1, {'lr': 0.1}), {'accuracy': 60.0}))
    again = Results(path)
    assert again.find(job)['accuracy'] == 50 and set(again.runs) == {'kd_seed0', 'kd_seed1'}
    stored = json.loads(path.read_text())
    assert len(stored['places']) == 1 and stored['places'][0]['versions']['torch']
    assert str(tmp_path) not in path.read_text()
    sized = Job('sized', Path('kd.py'), tmp_path, 0, {'scale': (147, 147)})
    Results(path).add((sized, {'accuracy': 70.0}))
    assert Results(path).find(sized)['accuracy'] == 70  # JSON has no tuples
    with pytest.raises(ValueError, match=r'kd_seed0 was run with .*0\.1.*0\.2.*--out'):
        again.find(Job('kd_seed0', Path('kd.py'), tmp_path, 0, {'lr': 0.2}))
    assert again.find(Job('new', Path('kd.py'), tmp_path, 0)) is None
    with pytest.raises(ValueError, match=r"'kd\.py'.*'other\.py'"):
        again.find(Job('kd_seed0', Path('other.py'), tmp_path, 0, {'lr': 0.1}))


@pytest.mark.parametrize('content', ['{', '[]', '{"runs": {}}', 'null'])
def test_a_file_that_is_none_of_ours_is_named(content: str, tmp_path: Path) -> None:
    from experiments.results import Results

    (tmp_path / 'a.json').write_text(content)
    with pytest.raises(ValueError, match=r'a\.json is not a results file'):
        Results(tmp_path / 'a.json')
    with pytest.raises(ValueError, match='is not a results file'):
        Results(tmp_path)
