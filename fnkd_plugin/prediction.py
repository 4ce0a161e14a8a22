"""Predictions of a batch: logits, and what temperature policies need to rescale them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fnkd_plugin.functional import at_least_fp32


class Prediction(NamedTuple):
    r"""Logits of a batch, with the feature norm and bias that rescale them exactly.

    Attributes:
        logits: :math:`z = W f + b`, [N, K].
        feature_norm: :math:`\lVert f \rVert_2` of the input of the last affine layer (after any head dropout),
            [N]; None for a model without a single such layer.
        origin: The logits of the zero feature, i.e. the bias :math:`b`, [K]; None without a bias or such a layer. For
            a student it is the parameter itself.
    """

    logits: Tensor
    feature_norm: Tensor | None = None
    origin: Tensor | None = None


class EnsemblePrediction(Prediction):
    r"""Predictions of several teachers, for their weighted mean distribution.

    A cross-entropy is linear in its target, so under a temperature policy :math:`\pi` the loss on the mean of the
    members' distributions, :math:`\sum_m w_m \sigma(\pi(v_m))`, is the weighted mean of the losses on each. Losses that
    need one set of logits, and the log, use ``logits``, :math:`\log \sum_m w_m \sigma(v_m)`, whose softmax is the mean
    distribution without any policy (our choice). ``feature_norm`` is the weighted mean over the members, from
    which ``tau='auto'`` gives one tau for all (our choice); None if a member has none. ``origin`` is None.

    Attributes:
        members: One prediction per teacher.
        weights: :math:`w_m > 0`, with sum 1.
    """

    members: tuple[Prediction, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, members: Sequence[Prediction], weights: Sequence[float]) -> 'EnsemblePrediction':
        """Build from one prediction and one weight per teacher."""
        pairs = list(zip(weights, members, strict=True))
        logs = [math.log(w) + torch.log_softmax(at_least_fp32(m.logits), dim=1) for w, m in pairs]
        norms = [w * m.feature_norm for w, m in pairs if m.feature_norm is not None]
        mean_norm = torch.stack(norms).sum(0) if len(norms) == len(pairs) else None
        made = cls(torch.logsumexp(torch.stack(logs), dim=0), mean_norm)
        made.members, made.weights = tuple(members), tuple(weights)
        return made


class SparsePrediction(Prediction):
    """The largest logits of each image, and moments of the others; see :mod:`fnkd_plugin.losses.top_k`.

    ``logits`` are the k largest of each image in descending order, [N, k]; ``origin`` has all classes, [K].

    Attributes:
        classes: The classes of ``logits``, [N, k].
        tail: Mean and variance of v - b over the other classes, and its covariance with b, [N, 3].
        num_classes: K.
    """

    classes: Tensor
    tail: Tensor
    num_classes: int

    @classmethod
    def of(cls, dense: Prediction, classes: Tensor, tail: Tensor, num_classes: int) -> 'SparsePrediction':
        """Build from a prediction whose ``logits`` are the k largest."""
        made = cls(*dense)
        made.classes, made.tail, made.num_classes = classes, tail, num_classes
        return made


def most_likely(prediction: Prediction) -> Tensor:
    """The class of the largest logit of each image, [N]."""
    if isinstance(prediction, SparsePrediction):
        return prediction.classes[:, 0]
    return prediction.logits.argmax(1)


def members_of(prediction: Prediction) -> list[tuple[float, Prediction]]:
    """The weight and prediction of each teacher; the weights sum to 1. Nested ensembles are flattened."""
    if isinstance(prediction, EnsemblePrediction):
        pairs = zip(prediction.weights, prediction.members, strict=True)
        return [(weight * share, one) for weight, member in pairs for share, one in members_of(member)]
    return [(1.0, prediction)]
