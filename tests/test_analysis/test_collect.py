import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from fnkd_plugin.analysis.collect import Policy, calibrate_tau, collect
from fnkd_plugin.analysis.subject import Batch, Subject
from fnkd_plugin.errors import SetupError
from fnkd_plugin.prediction import EnsemblePrediction, Prediction
from tests.helpers import CLASSES
from tests.test_analysis.subjects import subject

pytestmark = pytest.mark.upstream

POLICY = Policy(temperature=4.0, tau=0.5)
NEIGHBOURS = [[1, 2], [0], [], [0, 1, 2]]


def _all_logits(found: Subject) -> tuple[Prediction, Prediction]:
    batches = list(found.batches())
    predictions = zip(*((b.model, b.teacher) for b in batches), strict=True)
    model, teacher = (
        Prediction(torch.cat([p.logits for p in ps]), torch.cat([p.feature_norm for p in ps]), ps[0].origin)
        for ps in predictions
    )
    return model, teacher


def test_columns_are_what_they_say(tmp_path: Path) -> None:
    found = subject(tmp_path, teacher=True, count=20)
    other = (found.labels + 1) % CLASSES
    counted: list[int] = []
    columns = collect(found, POLICY, {'given': found.labels, 'other': other}, NEIGHBOURS, counted.append)
    assert counted == [8, 8, 4]
    model, teacher = _all_logits(found)
    z, v = model.logits.double(), teacher.logits.double()
    p, q = F.softmax(z, 1), F.softmax(v, 1)
    rows, labels = np.arange(20), found.labels
    expected = {
        'prediction': z.argmax(1),
        'norm': model.feature_norm,
        'entropy': -(p * p.log()).sum(1),
        'confidence': p.max(1).values,
        'off_mass': 1 - p[rows, labels],
        'near_mass': torch.stack([p[i, NEIGHBOURS[label]].sum() for i, label in enumerate(labels)]),
        'loss/given': -p[rows, labels].log(),
        'loss/other': -p[rows, other].log(),
        'teacher_norm': teacher.feature_norm,
        'teacher_prediction': v.argmax(1),
        'source_norm': teacher.feature_norm,
        'disagreement': (q * (q / p).log()).sum(1),
        'kd_confidence': F.softmax(v / 4, 1).max(1).values,
    }
    b, s = teacher.origin.double(), 0.5 / teacher.feature_norm.double().clamp_min(0.5)
    q_fn = F.softmax((v - b) * s[:, None] + b, 1)
    expected['fnkd_confidence'] = q_fn.max(1).values
    expected['fnkd_entropy'] = -(q_fn * q_fn.log()).sum(1)
    for i, label in enumerate(other):
        rest = [k for k in range(CLASSES) if k != label]
        assert columns['margin/other'][i] == pytest.approx(float(z[i, label] - z[i, rest].max()), abs=1e-4)
    for name, values in expected.items():
        assert columns[name] == pytest.approx(values.numpy(), rel=1e-4, abs=1e-5), name
    assert {len(column) for column in columns.values()} == {20}


def test_without_a_teacher_the_model_gives_the_soft_labels(tmp_path: Path) -> None:
    found = subject(tmp_path, count=9)
    columns = collect(found, POLICY, {'given': found.labels})
    assert (columns['source_norm'] == columns['norm']).all()
    assert not any('teacher' in name or 'near' in name for name in columns)
    without_norm = Prediction(torch.zeros(1, 2))
    with_norm = Prediction(torch.zeros(1, 2), torch.ones(1))
    assert Batch([0], torch.zeros(1), with_norm, without_norm).source is with_norm


def test_auto_tau_is_a_third_of_the_mean_norm(tmp_path: Path) -> None:
    found = subject(tmp_path, teacher=True, count=20)
    _, teacher = _all_logits(found)
    assert calibrate_tau(found) == pytest.approx(float(teacher.feature_norm.mean()) / 3, rel=1e-5)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    found = subject(tmp_path, count=9)
    with torch.no_grad():
        found.model.model.head.fc.weight.fill_(float('nan'))
    with pytest.raises(SetupError, match=r'of image 0 is not finite; check the checkpoint'):
        collect(found, POLICY, {'given': found.labels})


@DATASETS.register_module(force=True)
class ManyImages(BaseDataset):
    """``count`` images of 8 pixels, made on access, so that the data set itself takes no memory."""

    METAINFO = dict(classes=[f'c{i}' for i in range(CLASSES)])  # noqa: RUF012

    def __init__(self, count: int, **kwargs: object) -> None:
        self.count = count
        super().__init__(ann_file='', serialize_data=False, **kwargs)

    def load_data_list(self) -> list[dict]:
        return []

    def __len__(self) -> int:
        return self.count

    def get_data_info(self, idx: int) -> dict:
        image = np.random.default_rng(idx).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        return dict(img=image, gt_label=idx % CLASSES, sample_idx=idx)


def _peak(folder: Path, count: int) -> tuple[int, int]:
    """The largest memory during a pass beyond that before it, and the bytes of the columns."""
    found = subject(folder, type='ManyImages', count=count)
    gc.collect()
    tracemalloc.start()
    try:
        columns = collect(found, POLICY, {'given': found.labels}, NEIGHBOURS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak, sum(column.nbytes for column in columns.values())


def test_ten_times_the_images_need_no_more_memory_than_their_numbers(tmp_path: Path) -> None:
    (small, small_columns), (large, large_columns) = (_peak(tmp_path, count) for count in (200, 2000))
    assert large_columns == 10 * small_columns
    assert large_columns / 2000 < 100  # a few numbers each; the image alone is 192 bytes, a batch of them 6 kB
    assert large - small < 1.5 * (large_columns - small_columns) + 20_000


def test_soft_labels_of_an_ensemble_are_the_mean_of_its_members(tmp_path: Path) -> None:
    """As in training: each member under the policy with its own norm and bias, then the weighted mean."""
    members = [Prediction(4 * torch.randn(6, 5), 1 + 9 * torch.rand(6), torch.randn(5)) for _ in range(2)]
    found = POLICY.fnkd(EnsemblePrediction.of(members, [0.25, 0.75]))
    expected = torch.zeros(6, 5)
    for share, (logits, norm, bias) in zip([0.25, 0.75], members, strict=True):
        scaled = (logits - bias) * (0.5 / norm.clamp_min(0.5))[:, None] + bias
        expected += share * F.softmax(scaled, 1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        POLICY.kd(EnsemblePrediction.of(members, [0.5, 0.5])), sum(F.softmax(m.logits / 4, 1) for m in members) / 2
    )
