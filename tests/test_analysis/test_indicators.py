import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fnkd_plugin.analysis.indicators import audit, mean_and_error, placements, precision_at, suspicion, verdict
from fnkd_plugin.errors import SetupError


def _noisy(seed: int, positives: int = 60, negatives: int = 240) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two correlated scores with ties, and which samples are positive."""
    random = np.random.default_rng(seed)
    positive = np.arange(positives + negatives) < positives
    common = random.normal(size=len(positive))
    a, b = (0.7 * common + random.normal(size=len(positive)) + shift * positive for shift in (1.0, 0.4))
    return a.round(1), b.round(1), positive


def _auroc(a: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    return mean_and_error(*placements(a, positive))


def _difference(a: np.ndarray, b: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    placed = zip(placements(a, positive), placements(b, positive), strict=True)
    return mean_and_error(*(x - y for x, y in placed))


def test_auroc_is_sklearns_ties_included() -> None:
    for seed in range(5):
        a, _, positive = _noisy(seed)
        assert _auroc(a, positive)[0] == pytest.approx(roc_auc_score(positive, a), abs=1e-12)


def test_placements_are_shares_of_the_other_side() -> None:
    scores = np.array([3.0, 1.0, 2.0, 0.0])
    above, below = placements(scores, np.array([True, True, False, False]))
    assert above.tolist() == [1.0, 0.5]
    assert below.tolist() == [0.5, 1.0]


def test_standard_errors_are_those_of_repeated_samples() -> None:
    drawn = [_noisy(seed) for seed in range(400)]
    single = [_auroc(a, positive) for a, _, positive in drawn]
    paired = [_difference(a, b, positive) for a, b, positive in drawn]
    for found in (single, paired):
        values, errors = np.array(found).T
        # 400 draws know a standard deviation to about 4 %.
        assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.15)


def test_a_score_does_not_differ_from_itself() -> None:
    a, _, positive = _noisy(0)
    assert _difference(a, 3 * a + 1, positive) == (0.0, 0.0)


def test_precision_counts_the_largest_scores() -> None:
    scores, positive = np.array([0.1, 0.9, 0.5, 0.8]), np.array([True, True, False, False])
    assert [precision_at(scores, positive, k) for k in (1, 2, 4)] == [1.0, 0.5, 0.5]


def test_directions() -> None:
    columns = {
        'norm': np.array([1.0, 9.0]),
        'entropy': np.array([2.0, 0.1]),
        'loss/x': np.array([3.0, 0.2]),
        'margin/x': np.array([-1.0, 4.0]),
    }
    for name, scores in suspicion(columns, 'x').items():
        assert scores[0] > scores[1], name


def _scores(norm: float, loss: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    random = np.random.default_rng(0)
    wrong = np.arange(2000) < 400
    return {
        name: random.normal(size=2000) + shift * wrong
        for name, shift in (('norm', norm), ('loss', loss), ('margin', 0.0))
    }, wrong


@pytest.mark.parametrize(
    ('norm', 'loss', 'phrases'),
    [
        (2.0, 0.5, ('better than chance', 'better than loss')),
        (0.5, 2.0, ('better than chance', 'worse than loss')),
        (0.0, 2.0, ('not significantly different from chance', 'worse than loss')),
        (-1.0, 2.0, ('worse than chance', 'worse than loss')),
        (1.0, 1.0, ('better than chance', 'not significantly different from loss')),
    ],
)
def test_the_verdict_follows_from_the_numbers(norm: float, loss: float, phrases: tuple[str, ...]) -> None:
    audited = audit(*_scores(norm, loss))
    assert audited['best'] == 'loss'
    sentence = verdict(audited)
    assert all(phrase in sentence for phrase in phrases), sentence
    assert f'{audited["indicators"]["norm"]["auroc"]:.3f}' in sentence


def test_an_audit_counts() -> None:
    audited = audit(*_scores(1.0, 2.0))
    assert (audited['images'], audited['wrong'], audited['chance']) == (2000, 400, 0.2)
    for found in audited['indicators'].values():
        low, high = found['interval']
        assert low < found['auroc'] < high
        assert set(found['precision']) == {'20', '100', '400'}


@pytest.mark.parametrize('count', [0, 1, 49, 50])
def test_too_few_of_either_are_refused(count: int) -> None:
    wrong = np.arange(50) < count
    with pytest.raises(SetupError, match=f'{count} of 50 labels are wrong'):
        audit({'norm': np.zeros(50), 'loss': np.zeros(50)}, wrong)
