"""Per-image numbers from one pass over the images; images, features and logits are not kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fnkd_plugin.analysis.subject import Subject
from fnkd_plugin.errors import SetupError
from fnkd_plugin.functional import at_least_fp32
from fnkd_plugin.losses import FNKDLoss, KDLoss, SoftTargetLoss
from fnkd_plugin.losses.auto_tau import CALIBRATION_BATCHES, LAMBDA
from fnkd_plugin.prediction import Prediction, members_of

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Policy:
    """The two temperature policies to compare.

    Attributes:
        temperature: T of KD's σ(v/T).
        tau: The target feature norm of FNKD.
        mode: ``'clip'`` or ``'normalize'``, see :func:`fnkd_plugin.functional.scale_by_feature_norm`.
    """

    temperature: float
    tau: float
    mode: str = 'clip'

    def kd(self, prediction: Prediction) -> Tensor:
        """σ(v/T), [N, K] (Eq. 5)."""
        return _soft_labels(KDLoss(self.temperature), prediction)

    def fnkd(self, prediction: Prediction) -> Tensor:
        """q_fn, [N, K] (Eq. 10)."""
        return _soft_labels(FNKDLoss(self.tau, mode=self.mode), prediction)


def _soft_labels(loss: SoftTargetLoss, prediction: Prediction) -> Tensor:
    # For an ensemble the mean of its members' distributions, as in training.
    parts = [share * F.softmax(loss.scaled_logits(one).tensor(), dim=1) for share, one in members_of(prediction)]
    return torch.stack(parts).sum(0)


def calibrate_tau(subject: Subject, seed: int = 0) -> float:
    """Estimate ``tau='auto'``: a third of the mean feature norm over as many batches of random images.

    Uses the teacher's norm, or the model's if there is no teacher with a feature norm.

    Raises:
        SetupError: If the mean is zero or non-finite.
    """
    count = min(len(subject.labels), CALIBRATION_BATCHES * subject.batch_size)
    chosen = np.random.default_rng(seed).permutation(len(subject.labels))[:count]
    norms = [source_of(batch.model, batch.teacher).feature_norm for batch in subject.batches(chosen)]
    tau = float(torch.cat([norm.float() for norm in norms if norm is not None]).mean()) / LAMBDA
    if not 0 < tau < float('inf'):
        raise SetupError(
            f'analysis: the mean feature norm is {tau * LAMBDA}, so tau is undefined; check the checkpoint.'
        )
    return tau


def source_of(model: Prediction, teacher: Prediction | None) -> Prediction:
    """The prediction whose soft labels are analysed: the teacher's if it has a feature norm, else the model's."""
    return model if teacher is None or teacher.feature_norm is None else teacher


def collect(
    subject: Subject,
    policy: Policy,
    labelings: Mapping[str, np.ndarray],
    neighbours: Sequence[Sequence[int]] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Columns:
    r"""Compute the columns of all images in one pass.

    Args:
        subject: The subject of the analysis.
        policy: The temperatures of ``kd_*`` and ``fnkd_*``.
        labelings: Labels [N] to evaluate the model on, by name, e.g. flipped ones.
        neighbours: A(x) of each class, for ``near_mass``; None omits these columns.
        advance: Called with the number of images after each batch.

    Returns:
        Columns [N], float32 or int32 for classes. Of the model: ``prediction``, ``norm`` (:math:`\lVert f\rVert`),
        ``entropy`` (nats), ``confidence`` (largest probability), and for the true classes ``off_mass``
        (:math:`1 - p_y`) and ``near_mass`` (the part of it in A(x)); likewise with the prefix ``teacher_`` if
        there is a teacher, and ``disagreement``, KL(teacher, model) in nats. Of each labeling ``loss/NAME``
        (cross-entropy, nats) and ``margin/NAME`` (the label's logit minus the largest other). Of the soft labels
        (see :func:`source_of`) ``source_norm``, ``kd_confidence``, ``kd_entropy``, ``fnkd_confidence``,
        ``fnkd_entropy``.

    Raises:
        SetupError: If a number is non-finite.
    """
    count = len(subject.labels)
    columns: Columns = {}
    near = None if neighbours is None else membership(neighbours).to(subject.device)
    truth = torch.from_numpy(subject.clean)
    start = 0
    for batch in subject.batches():
        stop = start + len(batch.labels)
        classes = truth[start:stop].to(batch.inputs.device)
        found = _of_prediction(batch.model, classes, near)
        logits = at_least_fp32(batch.model.logits)
        for name, labels in labelings.items():
            of_label = _of_labels(logits, torch.from_numpy(labels[start:stop]).to(logits.device))
            found.update({f'{key}/{name}': value for key, value in of_label.items()})
        if batch.teacher is not None:
            of_teacher = _of_prediction(batch.teacher, classes, near)
            found.update({f'teacher_{key}': value for key, value in of_teacher.items()})
            found['disagreement'] = divergence(batch.teacher.logits, logits)
        found.update(_of_soft_labels(source_of(batch.model, batch.teacher), policy))
        for name, values in found.items():
            kind = np.float32 if values.is_floating_point() else np.int32
            column = columns.setdefault(name, np.empty(count, kind))
            column[start:stop] = values.cpu().numpy()
        advance(stop - start)
        start = stop
    broken = [name for name, column in columns.items() if not np.isfinite(column).all()]
    if broken:
        image = int(np.flatnonzero(~np.isfinite(columns[broken[0]]))[0])
        raise SetupError(f'analysis: {broken[0]} of image {image} is not finite; check the checkpoint and the images.')
    return columns


def membership(neighbours: Sequence[Sequence[int]]) -> Tensor:
    """A(x) as a matrix [K, K]: entry (y, k) is 1 if k is near y and k != y, else 0."""
    near = torch.zeros(len(neighbours), len(neighbours))
    for row, indices in zip(near, neighbours, strict=True):
        row[list(indices)] = 1
    return near.fill_diagonal_(0)


def divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(σ(v), σ(z)) of each sample, in nats >= 0, [N]."""
    log_q = F.log_softmax(at_least_fp32(teacher_logits), dim=1)
    log_p = F.log_softmax(at_least_fp32(student_logits), dim=1)
    return (log_q.exp() * (log_q - log_p)).sum(dim=1).clamp_min(0)


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy of each row, in nats, [N]."""
    return torch.special.entr(probabilities).sum(dim=1)


def _of_prediction(prediction: Prediction, classes: Tensor, near: Tensor | None) -> dict[str, Tensor]:
    p = F.softmax(at_least_fp32(prediction.logits), dim=1)
    confidence, predicted = p.max(dim=1)
    # Not 1 - p_y, which loses precision in fp32.
    others = p.scatter(1, classes[:, None], 0)
    found = dict(prediction=predicted, entropy=entropy(p), confidence=confidence, off_mass=others.sum(dim=1))
    if prediction.feature_norm is not None:
        found['norm'] = prediction.feature_norm
    if near is not None:
        found['near_mass'] = (others * near[classes]).sum(dim=1)
    return found


def _of_labels(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    own = logits.gather(1, labels[:, None]).squeeze(1)
    other = logits.scatter(1, labels[:, None], float('-inf')).max(dim=1).values
    return dict(loss=F.cross_entropy(logits, labels, reduction='none'), margin=own - other)


def _of_soft_labels(source: Prediction, policy: Policy) -> dict[str, Tensor]:
    assert source.feature_norm is not None
    found = dict(source_norm=source.feature_norm)
    for name, q in (('kd', policy.kd(source)), ('fnkd', policy.fnkd(source))):
        found |= {f'{name}_confidence': q.max(dim=1).values, f'{name}_entropy': entropy(q)}
    return found
