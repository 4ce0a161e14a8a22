from pathlib import Path

import numpy as np
import pytest

from fnkd_plugin.analysis.collect import Policy
from fnkd_plugin.analysis.report import diagrams, headlines, page
from fnkd_plugin.analysis.study import IN_DATA, StudyOptions, labelings_of, study
from fnkd_plugin.errors import SetupError
from tests.helpers import CLASSES
from tests.test_analysis.subjects import subject

pytestmark = pytest.mark.upstream
pytest.importorskip('matplotlib')
pytest.importorskip('jinja2')

POLICY = Policy(temperature=4.0, tau=0.5)
NEIGHBOURS = [[1], [0], [3], [2]]
MADE = dict(
    title='<tiny>',
    command='c',
    split='val',
    seed=0,
    strengths='',
    versions={},
    machine=dict(processor=''),
)


def test_flips_are_of_the_clean_labels(tmp_path: Path) -> None:
    found = subject(tmp_path, type='FlippedLabels', of='RandomImages', rate=0.5, count=40)
    labelings = labelings_of(found, StudyOptions(NEIGHBOURS, flips=[0.25]))
    assert list(labelings) == ['given', 'flipped uniformly, 25%', 'flipped within A(x), 25%']
    assert (labelings['given'].labels != found.clean).sum() == 20
    for name in list(labelings)[1:]:
        assert (labelings[name].labels != found.clean).sum() == 10
        assert labelings[name].could_flip.all()
    near = labelings['flipped within A(x), 25%'].labels
    assert all(b in (a, *NEIGHBOURS[a]) for a, b in zip(found.clean, near, strict=True))


def test_the_loss_finds_labels_that_a_confident_model_contradicts(tmp_path: Path) -> None:
    found = subject(tmp_path, count=400)
    # The model's own predictions are taken for the truth.
    predictions = [p for b in found.batches() for p in b.model.logits.argmax(1).tolist()]
    found.clean[:] = predictions
    audited = study(found, POLICY, StudyOptions(flips=[0.2]))[1]['audits']['flipped uniformly, 20%']
    areas = {name: indicator['auroc'] for name, indicator in audited['indicators'].items()}
    assert areas['margin'] == 1
    # Norm and entropy were there before the flips.
    assert set(areas) == {'loss', 'margin'}
    assert 'norm_minus_best' not in audited


def test_an_audit_counts_images_that_could_have_been_flipped(tmp_path: Path) -> None:
    """Classes without neighbours must not count as negatives: the norm differs between classes, whatever the flips."""
    neighbours = [[1], [0], [], []]
    trained = subject(tmp_path, type='FlippedLabels', of='RandomImages', rate=0.5, count=40, groups=neighbours)
    columns, numbers = study(trained, POLICY, StudyOptions(neighbours, flips=[0.25]))
    audits = numbers['audits']
    for name, wrong in ((IN_DATA, 10), ('flipped within A(x), 25%', 5)):
        assert (audits[name]['images'], audits[name]['wrong']) == (20, wrong)
    assert audits['flipped uniformly, 25%']['images'] == 40
    assert set(audits[IN_DATA]['indicators']) == {'norm', 'loss', 'margin', 'entropy'}
    assert 'aurocs' in diagrams(trained, columns, numbers)


def test_without_known_wrong_labels_there_is_nothing_to_audit(tmp_path: Path) -> None:
    found = subject(tmp_path, count=24)
    columns, numbers = study(found, POLICY, StudyOptions())
    assert numbers['audits'] == {}
    assert 'aurocs' not in diagrams(found, columns, numbers)
    assert len(headlines(numbers)) == 1
    text = page(found, columns, numbers, MADE)
    assert '<title>&lt;tiny&gt;' in text
    flipped = subject(tmp_path, type='FlippedLabels', of='RandomImages', rate=0.5, count=24)
    audits = study(flipped, POLICY, StudyOptions())[1]['audits']
    assert list(audits) == [IN_DATA]


def test_images_are_ranked_by_their_numbers(tmp_path: Path) -> None:
    found = subject(tmp_path, teacher=True, count=40)
    columns, numbers = study(found, POLICY, StudyOptions(NEIGHBOURS, classes=[2], show=3))
    (row,) = numbers['class_rows']
    assert row['index'] == 2
    assert row['images'] == 40 // CLASSES
    members = columns['norm'][found.clean == 2]
    assert columns['norm'][row['small']].tolist() == np.sort(members)[:3].tolist()
    assert columns['norm'][row['large']].tolist() == np.sort(members)[::-1][:3].tolist()
    for name, key, sign in (('norm', 'norm', 1), ('loss', 'loss/given', -1), ('entropy', 'entropy', -1)):
        assert (sign * columns[key][numbers['ranking'][name]]).tolist() == np.sort(sign * columns[key])[:6].tolist()
    for card in numbers['compensations']:
        assert card['norm'] == pytest.approx(columns['teacher_norm'][card['image']], rel=1e-5)
        assert card['rows'][0]['index'] == found.clean[card['image']]


def test_what_does_not_fit_is_refused_before_any_image_is_seen(tmp_path: Path) -> None:
    found = subject(tmp_path, count=3)
    seen: list[int] = []
    for options, message in (
        (StudyOptions(classes=[3]), 'no image of this split is of class c3'),
        (StudyOptions(flips=[0.1]), '0 of 3 labels are wrong'),
        (StudyOptions(flips=[1.5]), 'rate must be'),
    ):
        with pytest.raises(SetupError, match=message):
            study(found, POLICY, options, seen.append)
    assert seen == []
