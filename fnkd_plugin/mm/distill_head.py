"""The soft losses of a distilled model and the weights of all its losses."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import MessageHub
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError, check_number
from fnkd_plugin.losses.soft_loss import SoftLoss, SoftTargetLoss
from fnkd_plugin.prediction import Prediction, most_likely


@MODELS.register_module()
class DistillHead(nn.Module):
    """The soft losses of a distilled model, and the weight of its hard loss.

    Args:
        soft_loss: A soft loss or its config, or several, which are summed.
        hard_weight: Factor of the student's own losses, >= 0.
        warmup: The part of the training, in [0, 1], over which the weight of the soft losses grows linearly: in epoch
            ``i`` of ``n``, counted from 1, their factor is ``min(1, i / (warmup * n))``; the same of iterations where
            the loop counts those. 0 for none; of several epochs, a part up to the first has no effect.
        wrong_teacher_weight: Factor in [0, 1] of the soft loss of images that the teacher (of an ensemble, the mean)
            misclassifies; 0 excludes them. Under mixup and CutMix the label is the heavier class.

    Raises:
        SetupError: If a number is out of range, ``soft_loss`` is not a soft loss, or ``wrong_teacher_weight`` is given
            with a loss that is not a mean over images (DIST, DKD).
    """

    def __init__(
        self,
        soft_loss: dict | SoftLoss | Sequence[dict | SoftLoss],
        hard_weight: float = 1.0,
        warmup: float = 0.0,
        wrong_teacher_weight: float = 1.0,
    ) -> None:
        super().__init__()
        several: list[Any] = list(soft_loss) if isinstance(soft_loss, (list, tuple)) else [soft_loss]
        # Not a ModuleList: soft losses have no parameters.
        self.soft_losses = [_build_soft_loss(loss) for loss in several]
        if not self.soft_losses:
            raise SetupError('DistillHead: soft_loss is empty; give at least one, such as KDLoss.')
        self.hard_weight = check_number('DistillHead', 'hard_weight', hard_weight)
        self.warmup = _share('warmup', warmup)
        self.wrong_teacher_weight = _share('wrong_teacher_weight', wrong_teacher_weight)
        others = [type(loss).__name__ for loss in self.soft_losses if not isinstance(loss, SoftTargetLoss)]
        if self.wrong_teacher_weight < 1 and others:
            raise SetupError(
                f'DistillHead: {others[0]} is not a mean over images under one policy, to which '
                'wrong_teacher_weight applies; leave it at 1, or use a soft loss such as KDLoss.'
            )

    @property
    def active(self) -> bool:
        """Whether any soft loss has a weight > 0; if not, the teacher is not run."""
        return bool(self._weighted())

    @property
    def calibrated(self) -> bool:
        """Whether no soft loss with a weight > 0 synchronises in ``observe`` any more."""
        return all(loss.calibrated for loss in self._weighted())

    @property
    def needs_feature_norm(self) -> bool:
        """Whether any soft loss with a weight > 0 reads feature norms."""
        return any(loss.needs_feature_norm for loss in self._weighted())

    @property
    def needs_all_logits(self) -> list[str]:
        """Class names of the soft losses with a weight > 0 that do not work with top-k logits of the teacher."""
        return [type(loss).__name__ for loss in self._weighted() if loss.needs_all_logits]

    @property
    def needs_labels(self) -> bool:
        """Whether :meth:`forward` reads labels."""
        return self.wrong_teacher_weight < 1 or any(loss.needs_labels for loss in self._weighted())

    def forward(self, student: Prediction, teacher: Prediction, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The soft losses by name: ``loss_soft``, or ``loss_soft_kd`` and the like if there are several.

        Args:
            student: Prediction for N images.
            teacher: Prediction for the same images.
            labels: Class indices [N], which some losses need.
        """
        factor = self._warmup_factor()
        extra = {} if self.wrong_teacher_weight == 1 else {'image_weight': self._image_weight(teacher, labels)}
        losses: dict[str, Tensor] = {}
        for name, loss in self._named().items():
            loss.observe(teacher)
            value = loss(student, teacher, labels, **extra)
            losses[name] = value if factor == 1 else value * factor
        return losses

    def log_vars(self) -> dict[str, float]:
        """Further values to log: ``tau``, or ``tau_fnkd`` and the like if there are several soft losses."""
        return {
            f'{key}{name.removeprefix("loss_soft")}': value
            for name, loss in self._named().items()
            for key, value in loss.log_vars().items()
        }

    def state(self) -> dict[str, Any]:
        """The state of the soft losses by name (``tau='auto'``), for checkpoints: plain numbers."""
        states = {name: loss.state_dict().get('_extra_state') for name, loss in self._named().items()}
        return {name: state for name, state in states.items() if state}

    def restore(self, states: Mapping[str, Any]) -> None:
        """Restore a :meth:`state`; losses missing from it keep their initial state.

        Raises:
            SetupError: If it is not a dict, or a loss cannot read its state.
        """
        if not isinstance(states, Mapping):
            raise SetupError(f'DistillHead: the stored state of the soft losses must be a dict, but is {states!r}.')
        for name, loss in self._named().items():
            if name in states:
                loss.load_state_dict({'_extra_state': states[name]})

    def scale_hard(self, losses: dict[str, Any]) -> dict[str, Any]:
        """The student's own losses times ``hard_weight``, with ``'loss'`` renamed to ``'loss_hard'``.

        The Runner logs the sum of all losses as ``'loss'``.
        """
        scaled = {}
        for name, value in losses.items():
            if 'loss' in name and self.hard_weight != 1:
                parts = [part * self.hard_weight for part in ([value] if isinstance(value, Tensor) else value)]
                value = parts[0] if isinstance(value, Tensor) else parts
            scaled['loss_hard' if name == 'loss' else name] = value
        return scaled

    def _weighted(self) -> list[SoftLoss]:
        return [loss for loss in self.soft_losses if loss.loss_weight > 0]

    def _image_weight(self, teacher: Prediction, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError('DistillHead: the images have no labels, which wrong_teacher_weight needs; leave it at 1.')
        right = (most_likely(teacher) == labels).float()
        return right + (1 - right) * self.wrong_teacher_weight

    def _named(self) -> dict[str, SoftLoss]:
        named: dict[str, SoftLoss] = {}
        for loss in self._weighted():
            name = 'loss_soft'
            if len(self.soft_losses) > 1:
                name += '_' + type(loss).__name__.removesuffix('Loss').lower()
                same = sum(other == name or other.startswith(name + '_') for other in named)
                name += f'_{same + 1}' if same else ''
            named[name] = loss
        return named

    def _warmup_factor(self) -> float:
        if self.warmup == 0:
            return 1.0
        hub = MessageHub.get_current_instance()
        # A loop by iterations counts a single epoch.
        unit = 'epoch' if (hub.get_info('max_epochs') or 1) > 1 else 'iter'
        done, length = hub.get_info(unit), hub.get_info(f'max_{unit}s')
        if done is None or length is None:
            raise RuntimeError(
                'DistillHead: warmup needs a Runner, which counts epochs and iterations; '
                'train with one, or set warmup=0.'
            )
        return min(1.0, (done + 1) / (self.warmup * length))


def _share(name: str, value: float) -> float:
    if check_number('DistillHead', name, value) > 1:
        raise SetupError(f'DistillHead: {name} must be in [0, 1], but is {value:g}.')
    return value


def _build_soft_loss(loss: dict | SoftLoss) -> SoftLoss:
    built = loss if isinstance(loss, nn.Module) else MODELS.build(loss)
    if not isinstance(built, SoftLoss):
        raise SetupError(
            f'DistillHead: soft_loss must be a soft loss such as KDLoss or FNKDLoss, but is {type(built).__name__}; '
            "losses on labels belong in the student's own head."
        )
    return built
