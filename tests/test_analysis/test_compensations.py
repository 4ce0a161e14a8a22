import pytest
import torch

from fnkd_plugin.analysis.collect import Policy
from fnkd_plugin.analysis.compensations import compensations, side_by_side
from fnkd_plugin.analysis.subject import Batch
from fnkd_plugin.functional import denoised_target, kd_target
from fnkd_plugin.prediction import Prediction

NEIGHBOURS = [[1], [0], [], []]
LABEL = torch.tensor([0])


def _batch(norm: float = 2.0) -> Batch:
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    model, teacher = (Prediction(z[None], torch.tensor([n])) for z, n in zip(logits, (norm, 5.0), strict=True))
    return Batch([0], torch.zeros(1), model, teacher)


def test_the_methods_are_those_of_the_paper() -> None:
    batch = _batch()
    etas = compensations(batch, LABEL, Policy(temperature=1.0, tau=1.0), NEIGHBOURS)
    assert list(etas) == ['LSR', 'ALSR', 'KD', 'FNKD']
    assert torch.allclose(denoised_target(LABEL, etas['LSR'])[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))
    assert torch.allclose(denoised_target(LABEL, etas['ALSR'])[0], torch.tensor([0.825, 0.125, 0.025, 0.025]))
    q_kd = torch.softmax(batch.teacher.logits, 1)
    assert torch.allclose(denoised_target(LABEL, etas['KD']), kd_target(LABEL, q_kd, 0.5))
    # Weighed by the student's norm, the shape by the teacher's.
    assert float(etas['FNKD'].sum()) == pytest.approx(9 / 2)
    assert torch.allclose(etas['FNKD'] / etas['FNKD'].sum(), torch.softmax(batch.teacher.logits / 5, 1))
    assert 'ALSR' not in compensations(batch, LABEL, Policy(4.0, 1.0), None)


def test_a_smaller_norm_weighs_the_teacher_more() -> None:
    totals = [float(compensations(_batch(norm), LABEL, Policy(4.0, 1.0), None)['FNKD'].sum()) for norm in (2.0, 4.0)]
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
