import numpy as np
import pytest

from fnkd_plugin.analysis.statistics import (
    binned,
    confused_pairs,
    contrasting_classes,
    correlation,
    extremes,
    near_share,
    summary,
)


def test_bins_hold_equally_many_and_follow_the_curve() -> None:
    x = np.random.default_rng(0).permutation(1000).astype(float)
    found = binned(x, 2 * x + 1, bins=10)
    assert found['x'] == pytest.approx(np.arange(49.5, 1000, 100))
    assert found['mean'] == pytest.approx(2 * np.array(found['x']) + 1)
    assert all(low < mean < high for low, mean, high in zip(*(found[k] for k in ('low', 'mean', 'high')), strict=True))
    assert len(binned(x[:3], x[:3])['x']) == 1


def test_correlations_of_a_monotone_curve() -> None:
    x = np.linspace(0, 3, 50)
    assert correlation(x, np.exp(-x))['spearman'] == pytest.approx(-1)
    assert correlation(x, 4 - x)['pearson'] == pytest.approx(-1)
    assert correlation(x, np.ones(50)) == dict(spearman=0.0, pearson=0.0)


def test_summary_of_norms() -> None:
    assert summary(np.array([1.0, 3.0])) == dict(images=2, mean=2.0, std=1.0)
    assert summary(np.array([])) == dict(images=0, mean=None, std=None)


def test_mass_inside_groups_against_chance() -> None:
    neighbours = [[1], [0], [], [0, 1, 2]]
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 500)
    classes = rng.integers(0, 4, 500)
    rows = np.arange(500)
    off = 1 - p[rows, classes]
    near = np.array([p[i, neighbours[c]].sum() for i, c in enumerate(classes)])
    found = near_share(off, near, p.argmax(1), classes, neighbours)
    has = classes != 2
    assert found['images'] == has.sum()
    assert found['share'] == pytest.approx(near.sum() / off[has].sum())
    # Evenly drawn probabilities lie inside as chance has it.
    assert found['share'] == pytest.approx(found['chance'], abs=0.05)
    by_class = {entry['index']: entry for entry in found['by_class']}
    assert set(by_class) == {0, 1, 3}
    assert by_class[3]['share'] == pytest.approx(1)
    assert by_class[3]['chance'] == 1
    wrong = has & (p.argmax(1) != classes)
    assert found['errors'] == wrong.sum()
    assert found['errors_share'] == pytest.approx(
        np.mean([p[i].argmax() in neighbours[classes[i]] for i in rows[wrong]])
    )


def test_confusions_are_counted_by_pair() -> None:
    classes = np.array([0, 0, 0, 1, 2, 2])
    prediction = np.array([1, 1, 0, 0, 2, 2])
    assert confused_pairs(prediction, classes) == [
        dict(true=0, predicted=1, images=2),
        dict(true=1, predicted=0, images=1),
    ]
    assert confused_pairs(classes, classes) == []


def test_extremes_do_not_overlap() -> None:
    norm = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 0.0])
    members = np.array([0, 1, 2, 3, 4])
    assert extremes(norm, members, 2) == ([1, 3], [0, 2])
    assert extremes(norm, members, 6) == ([1, 3], [0, 2])
    assert extremes(norm, members[:1], 6) == ([0], [0])


def test_contrasting_classes_have_the_widest_ratio_and_enough_images() -> None:
    norm = np.array([1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 9.0, 9.0, 1.0, 99.0])
    classes = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    assert contrasting_classes(norm, classes, 3, 2) == [1, 0, 2]
