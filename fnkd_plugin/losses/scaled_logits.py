"""Logits with the scale and origin of a temperature policy."""

from typing import NamedTuple

from torch import Tensor

from fnkd_plugin.functional import norm_scale, scale_about_origin


class FeatureNormScale(NamedTuple):
    r"""Arguments of :func:`~fnkd_plugin.functional.norm_scale`, so that a kernel can compute it.

    Attributes:
        norm: :math:`r \ge 0`, [N].
        tau: :math:`\tau > 0`.
        mode: ``'normalize'`` or ``'clip'``.
    """

    norm: Tensor
    tau: float | Tensor
    mode: str = 'normalize'

    def tensor(self) -> Tensor:
        """:math:`s`, [N], fp32 or fp64."""
        return norm_scale(self.norm, self.tau, self.mode)


class ScaledLogits(NamedTuple):
    r"""Logits with the scale and origin of a temperature policy, :math:`z' = b + s (z - b)`.

    Attributes:
        logits: :math:`z`, [N, K].
        scale: :math:`s`, the inverse temperature of each sample, [N], or one for all.
        origin: :math:`b`, the fixed point of the scaling, [K]; None for 0.
    """

    logits: Tensor
    scale: Tensor | float | FeatureNormScale = 1.0
    origin: Tensor | None = None

    def tensor(self) -> Tensor:
        """:math:`z'`, [N, K], fp32, or fp64 if any input is. Gradient flows through all inputs."""
        scale = self.scale.tensor() if isinstance(self.scale, FeatureNormScale) else self.scale
        return scale_about_origin(self.logits, scale, self.origin)

    def tensors(self) -> list[Tensor]:
        """The tensors among the inputs."""
        scale = self.scale.norm if isinstance(self.scale, FeatureNormScale) else self.scale
        return [x for x in (self.logits, scale, self.origin) if isinstance(x, Tensor)]


Target = tuple[ScaledLogits, Tensor | float]
"""A teacher's scaled logits and the weight of its samples, [N], or one for all."""
