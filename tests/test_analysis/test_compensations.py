import pytest
import torch

from fnkd_plugin.analysis.collect import Policy
from fnkd_plugin.analysis.compensations import compensations, side_by_side
from fnkd_plugin.analysis.thumbnails import Shown
from fnkd_plugin.functional import denoised_target, kd_target
from fnkd_plugin.prediction import Prediction

NEIGHBOURS = [[1], [0], [], []]


def _shown(norm: float = 2.0) -> Shown:
    def predict(seed: int, norm: float) -> Prediction:
        logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))
        return Prediction(logits, torch.tensor([norm]), None)

    return Shown('', predict(0, norm), predict(1, 5.0))


def test_the_methods_are_those_of_the_paper() -> None:
    shown = _shown()
    etas = compensations(shown, 0, Policy(temperature=1.0, tau=1.0), NEIGHBOURS)
    assert list(etas) == ['LSR', 'ALSR', 'KD', 'FNKD']
    label = torch.tensor([0])
    assert torch.allclose(denoised_target(label, etas['LSR'][None])[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))
    assert torch.allclose(denoised_target(label, etas['ALSR'][None])[0], torch.tensor([0.825, 0.125, 0.025, 0.025]))
    q_kd = torch.softmax(shown.teacher.logits, 1)
    assert torch.allclose(denoised_target(label, etas['KD'][None]), kd_target(label, q_kd, 0.5))
    # Weighed by the student's norm, the shape by the teacher's.
    assert float(etas['FNKD'].sum()) == pytest.approx(9 / 2)
    assert torch.allclose(etas['FNKD'] / etas['FNKD'].sum(), torch.softmax(shown.teacher.logits[0] / 5, 0))
    assert 'ALSR' not in compensations(shown, 0, Policy(4.0, 1.0), None)


def test_a_smaller_norm_weighs_the_teacher_more() -> None:
    totals = [float(compensations(_shown(norm), 0, Policy(4.0, 1.0), None)['FNKD'].sum()) for norm in (2.0, 4.0)]
    assert totals[0] == pytest.approx(2 * totals[1])


def test_shares_side_by_side_are_whole_and_begin_with_the_label() -> None:
    etas = {'LSR': torch.full((6,), 0.1), 'KD': torch.tensor([0.0, 0.2, 0.1, 0.6, 0.05, 0.05])}
    found = side_by_side(etas, 2, top=2)
    assert [row['index'] for row in found['rows']] == [2, 3, 1, None]
    assert found['total'] == pytest.approx(dict(LSR=0.6, KD=1.0))
    for name in etas:
        assert sum(row['shares'][name] for row in found['rows']) == pytest.approx(1)
    assert found['rows'][0]['shares'] == pytest.approx(dict(LSR=1 / 6, KD=0.1))
    assert found['largest'] == pytest.approx(0.6)
    everything = side_by_side(etas, 2, top=10)
    assert [row['index'] for row in everything['rows']][-1] is None
    assert everything['rows'][-1]['shares'] == pytest.approx(dict(LSR=0, KD=0), abs=1e-6)
