"""What a model says of a batch, as far as any temperature policy needs to know."""

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    r"""Logits, and what rescales them exactly.

    Attributes:
        logits: :math:`z = W f + b`, [N, K].
        feature_norm: :math:`\lVert f \rVert_2` of the last affine layer's actual input (after any head
            dropout), [N]; None for a model without one single such layer.
        origin: The logits of the zero feature, that is the bias :math:`b`, [K]; None where there is no
            bias or no such layer. A student's is the live parameter.
    """

    logits: Tensor
    feature_norm: Tensor | None = None
    origin: Tensor | None = None
