"""Numbers of each image from one pass; images, features and logits are not kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fnkd_plugin.analysis.subject import Subject
from fnkd_plugin.errors import SetupError
from fnkd_plugin.functional import Neighbours, at_least_fp32
from fnkd_plugin.losses import FNKDLoss, KDLoss, SoftTargetLoss
from fnkd_plugin.losses.auto_tau import CALIBRATION_BATCHES, LAMBDA
from fnkd_plugin.prediction import Prediction, members_of

Columns = dict[str, NDArray]


@dataclass(frozen=True)
class Policy:
    """The two temperature policies to compare.

    Attributes:
        temperature: T of KD's σ(v/T).
        tau: The target feature norm of FNKD.
        mode: ``'normalize'`` or ``'clip'``, see :func:`fnkd_plugin.functional.scale_by_feature_norm`.
    """

    temperature: float
    tau: float
    mode: str = 'normalize'

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
    """Estimate ``tau='auto'``: a third of the mean norm of the soft labels' source over as many random batches."""
    count = CALIBRATION_BATCHES * subject.batch_size
    chosen = np.random.default_rng(seed).permutation(len(subject.labels))[:count].tolist()
    norms = [batch.source.feature_norm for batch in subject.batches(chosen)]
    return float(torch.cat([norm.float() for norm in norms if norm is not None]).mean()) / LAMBDA


def collect(
    subject: Subject,
    policy: Policy,
    labelings: Mapping[str, NDArray],
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
        (see :attr:`Batch.source <fnkd_plugin.analysis.subject.Batch.source>`) ``source_norm``, ``kd_confidence``,
        ``kd_entropy``, ``fnkd_confidence``, ``fnkd_entropy``.

    Raises:
        SetupError: If a number is non-finite.
    """
    columns: Columns = {}
    near = None if neighbours is None else Neighbours(neighbours)
    for batch in subject.batches():
        logits, source = at_least_fp32(batch.model.logits), batch.source
        device = logits.device
        truth = torch.from_numpy(subject.clean[batch.indices]).to(device)
        near_truth = None if near is None else near.to(device).near(truth) > 0
        found = _of_prediction(batch.model, truth, near_truth)
        for name, labels in labelings.items():
            of_label = _of_labels(logits, torch.from_numpy(labels[batch.indices]).to(device))
            found |= {f'{key}/{name}': value for key, value in of_label.items()}
        if batch.teacher is not None:
            of_teacher = _of_prediction(batch.teacher, truth, near_truth)
            found |= {f'teacher_{key}': value for key, value in of_teacher.items()}
            log_q, log_p = (F.log_softmax(at_least_fp32(z), dim=1) for z in (batch.teacher.logits, logits))
            found['disagreement'] = F.kl_div(log_p, log_q, reduction='none', log_target=True).sum(1).clamp_min(0)
        assert source.feature_norm is not None
        found['source_norm'] = source.feature_norm
        for name, q in (('kd', policy.kd(source)), ('fnkd', policy.fnkd(source))):
            found |= {f'{name}_confidence': q.amax(1), f'{name}_entropy': _entropy(q)}
        for name, values in found.items():
            if name not in columns:
                columns[name] = np.empty(len(subject.labels), np.float32 if values.is_floating_point() else np.int32)
            columns[name][batch.indices] = values.cpu().numpy()
        advance(len(batch.indices))
    for name, column in columns.items():
        wrong = np.flatnonzero(~np.isfinite(column))
        if len(wrong):
            raise SetupError(
                f'analysis: {name} of image {wrong[0]} is not finite; check the checkpoint and the images.'
            )
    return columns


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(dim=1)


def _of_prediction(prediction: Prediction, truth: Tensor, near: Tensor | None) -> dict[str, Tensor]:
    p = F.softmax(at_least_fp32(prediction.logits), dim=1)
    confidence, predicted = p.max(dim=1)
    # Not 1 - p_y, which loses precision in fp32.
    others = p.scatter(1, truth[:, None], 0)
    found = dict(prediction=predicted, entropy=_entropy(p), confidence=confidence, off_mass=others.sum(dim=1))
    if prediction.feature_norm is not None:
        found['norm'] = prediction.feature_norm
    if near is not None:
        found['near_mass'] = (others * near).sum(dim=1)
    return found


def _of_labels(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    own = logits.gather(1, labels[:, None]).squeeze(1)
    other = logits.scatter(1, labels[:, None], float('-inf')).amax(1)
    return dict(loss=F.cross_entropy(logits, labels, reduction='none'), margin=own - other)
