"""Distillation as training tasks of timm, for timm's trainer or plain torch, without OpenMMLab."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.task import TrainingTask, resolve_classification_loss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fnkd_plugin.errors import SetupError, check_number, check_several_classes
from fnkd_plugin.losses import FNKDLoss, SoftLoss
from fnkd_plugin.prediction import Prediction
from fnkd_plugin.readers import AffineReader, find_last_affine, probe, without_readers
from fnkd_plugin.rng import isolated_rng
from fnkd_plugin.taxonomy.names import ClassNames
from fnkd_plugin.teachers.class_names import Classes
from fnkd_plugin.teachers.pixels import PixelFormat
from fnkd_plugin.teachers.teacher import ModelTeacher, Teacher, sharing_weights
from fnkd_plugin.teachers.timm_models import fixed_size
from fnkd_plugin.teachers.timm_teacher import TimmTeacher

__all__ = ['DistillationTask', 'FNKDTask']

_logger = logging.getLogger(__name__)


class DistillationTask(TrainingTask):
    r"""A soft loss of this package as one of timm's training tasks.

    The student is :attr:`trainable_module`: checkpoints (:meth:`get_checkpoint_state`), EMA, DDP, optimisers, scripting
    and quantisation use the plain model. The teacher is frozen, in eval mode and on the device of the images, and not
    part of ``state_dict()`` or ``parameters()``. A teacher given as a module is not changed; the task runs a copy that
    shares its weights. It gets the student's images, after mixup, under its own normalisation. With a soft weight of 0
    it is not run, and training equals timm's ``ClassificationTask`` bit for bit.

    Args:
        student_model: The model to train, on its device, not yet wrapped.
        teacher_model: The trained teacher: timm's name of it, a module, or a :class:`~fnkd_plugin.teachers.Teacher`. A
            module's normalisation is that of its ``pretrained_cfg``.
        criterion: The loss on the labels; from ``timm.loss.create_classification_loss`` if None.
        criterion_kwargs: Arguments of that function if ``criterion`` is None.
        teacher_pretrained_path: The weights of a teacher given by name; timm's pretrained weights if None.
        teacher_pretrained_cfg_overlay: Changes to the ``pretrained_cfg`` of a teacher given by name.
        soft_loss: The distillation loss, including its ``loss_weight``.
        task_loss_weight: The weight of the loss on the labels, >= 0.
        classes: The names of the student's classes (a list or a text file), to compare with the teacher's, or to find
            among them if its ``class_map`` is ``'by-name'``.
        mean: The mean of the images' normalisation, on timm's 0 to 1 scale; from the student's ``pretrained_cfg`` if
            None. If neither is known, that of the teacher must be unknown too, and images are passed on unchanged.
        std: Likewise.
        device: Device of the criterion, as in timm's tasks.
        dtype: As in timm's tasks.
        verbose: Whether to log student, teacher, soft loss and image format.

    Raises:
        SetupError: If student, teacher and soft loss do not fit.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: str | nn.Module | Teacher,
        criterion: nn.Module | Callable[[Tensor, Tensor], Tensor] | None = None,
        criterion_kwargs: dict[str, Any] | None = None,
        teacher_pretrained_path: str | None = None,
        teacher_pretrained_cfg_overlay: dict[str, Any] | None = None,
        *,
        soft_loss: SoftLoss,
        task_loss_weight: float = 1.0,
        classes: ClassNames | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        owner = type(self).__name__
        self.trainable_module: nn.Module = student_model
        self.criterion = resolve_classification_loss(criterion, self.device, criterion_kwargs=criterion_kwargs)
        self.soft_loss = soft_loss
        self.task_loss_weight = check_number(owner, 'task_loss_weight', task_loss_weight)
        with isolated_rng():
            count, layer = _student_logits(owner, student_model)
            if isinstance(teacher_model, str):
                path = teacher_pretrained_path
                arguments: dict[str, Any] = dict(in_chans=getattr(student_model, 'in_chans', 3))
                if teacher_pretrained_cfg_overlay:
                    arguments['pretrained_cfg_overlay'] = teacher_pretrained_cfg_overlay
                teacher: Teacher = TimmTeacher(teacher_model, path, path is None, **arguments)
            elif isinstance(teacher_model, Teacher):
                teacher = teacher_model
            else:
                teacher = _teacher_of(owner, teacher_model, student_model)
        # A Teacher is not a module, so that it is not registered as a submodule.
        self.teacher = teacher
        named = None if classes is None else Classes.of(classes, owner)
        teacher.match_classes(count, named)
        self._reader = _fit(owner, student_model, layer, teacher, soft_loss)
        self._targets_checked = False
        images = _pixels(owner, student_model, mean, std)
        teacher.prepare(images)
        if self.verbose:
            _logger.info(
                f'{owner}: student {type(student_model).__name__}, teacher {teacher.name}, soft loss '
                f'{type(soft_loss).__name__}; images: {images}'
            )

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> 'DistillationTask':
        """See timm's tasks; only the student is wrapped in DDP."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = 'inductor', mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """See timm's tasks; only the student is compiled."""
        if self._reader is not None:
            self._reader.attach()
        compiled: Any = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        self.trainable_module = self.eval_model = compiled
        return compiled

    def student(self) -> nn.Module:
        """The plain student; after :meth:`compile` a copy, since the compiled student has a forward hook."""
        module: Any = self.trainable_module
        while hasattr(module, '_orig_mod') or isinstance(module, DistributedDataParallel):
            module = module.module if isinstance(module, DistributedDataParallel) else module._orig_mod
        return module if self._reader is None or not self._reader.attached else without_readers(module)

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The state of the soft loss (of ``tau='auto'``), for checkpoints."""
        state = {} if ema else self.soft_loss.state_dict()
        return {'soft_loss': state} if state else {}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Continue from :meth:`get_task_state`."""
        if state and 'soft_loss' in state:
            self.soft_loss.load_state_dict(state['soft_loss'], strict=strict)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Run teacher and student on one batch.

        Args:
            input: Images [N, C, H, W].
            target: Class indices [N], or distributions [N, K] (mixup, CutMix).

        Returns:
            ``loss``: the weighted sum; ``output``: the student's logits; ``task_loss``: the unweighted loss on the
            labels; ``kd_loss``: the weighted soft loss; ``tau`` for FNKD.

        Raises:
            ValueError: If the first targets [N, K] are not distributions, e.g. multi-label targets.
        """
        if target.ndim == 2 and not self._targets_checked:
            self._check_distributions(target)
        if self.soft_loss.loss_weight == 0:
            output = self.trainable_module(input)
            task_loss = self.criterion(output, target)
            return self._result(output, task_loss, torch.zeros_like(task_loss))
        with isolated_rng():
            teacher = self.teacher.predict(input)
        self.soft_loss.observe(teacher)
        output, student = self._run_student(input)
        task_loss = self.criterion(output, target)
        kd_loss = self.soft_loss(student, teacher, target if target.ndim == 1 else target.argmax(1))
        log_vars = {name: torch.tensor(value) for name, value in self.soft_loss.log_vars().items()}
        return {**self._result(output, task_loss, kd_loss), **log_vars}

    @torch.compiler.disable
    def _check_distributions(self, target: Tensor) -> None:
        self._targets_checked = True
        sums = target.detach().float().sum(1)
        if not torch.allclose(sums, torch.ones_like(sums), atol=0.01):
            raise ValueError(
                f'{type(self).__name__}: targets must be class indices or distributions, but the rows of the first '
                f'batch sum to {sums.min():.3g} to {sums.max():.3g}; multi-label targets are not supported.'
            )

    def _run_student(self, images: Tensor) -> tuple[Tensor, Prediction]:
        if self._reader is None:
            output = self.trainable_module(images)
            return output, Prediction(output)
        with self._reader:
            output = self.trainable_module(images)
        student = self._reader.take()
        if student is None:
            raise RuntimeError(
                f'{type(self).__name__}: in training the student does not call its last affine layer as a module, so '
                'its feature norm cannot be read.'
            )
        return output, student

    def _result(self, output: Tensor, task_loss: Tensor, kd_loss: Tensor) -> dict[str, Tensor]:
        loss = self.task_loss_weight * task_loss + kd_loss
        return {'loss': loss, 'output': output, 'task_loss': task_loss, 'kd_loss': kd_loss}


class FNKDTask(DistillationTask):
    r"""Feature normalised knowledge distillation, :math:`L_{fn} = H(q, \sigma(z)) + \lambda^2 H(q_{fn}, \sigma(z'))` (Eq. 11).

    Args:
        *args: See :class:`DistillationTask`.
        tau: The target feature norm, > 0; or ``'auto'``, a third of the teacher's mean feature norm. See
            :class:`~fnkd_plugin.losses.FNKDLoss`.
        distill_loss_weight: :math:`\lambda^2 \ge 0`.
        mode: ``'normalize'`` (Eq. 10) or ``'clip'`` (the authors' code).
        detach_norm: Whether to detach the student's norm, as in Eq. 12.
        **kwargs: See :class:`DistillationTask`.

    Raises:
        SetupError: See :class:`DistillationTask`; also if a model has no last affine layer and so no feature norm.

    Examples:
        >>> import timm, torch
        >>> student, teacher = timm.create_model('test_resnet'), timm.create_model('test_vit')
        >>> task = FNKDTask(student, teacher, verbose=False)
        >>> result = task(torch.randn(2, 3, 160, 160), torch.tensor([0, 1]))
        >>> result['loss'].backward()
    """  # noqa: E501

    def __init__(
        self,
        *args: Any,
        tau: float | str = 'auto',
        distill_loss_weight: float = 9.0,
        mode: str = 'normalize',
        detach_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, soft_loss=FNKDLoss(tau, distill_loss_weight, mode, detach_norm), **kwargs)


def _student_logits(owner: str, student: nn.Module) -> tuple[int, nn.Module | None]:
    """The student's number of classes and last affine layer, if any."""
    output, ran = probe(student, student)
    if not isinstance(output, Tensor) or output.ndim != 2 or _headless(student):
        raise SetupError(
            f'{owner}: the student {type(student).__name__} does not return logits [N, K]; give a student with a '
            'classifier (num_classes > 0).'
        )
    check_several_classes(f'{owner}: the student {type(student).__name__}', output.shape[1])
    return output.shape[1], find_last_affine(output, ran)


def _teacher_of(owner: str, model: nn.Module, student: nn.Module) -> ModelTeacher:
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise SetupError(
            f"{owner}: the teacher must be a timm model's name, a module or a Teacher, but is {name}; wrap a function "
            'in CallableTeacher.'
        )
    if model is student:
        raise SetupError(f'{owner}: the teacher is the student itself; give a trained copy.')
    if _headless(model):
        raise SetupError(
            f'{owner}: the teacher {name} has no classifier (num_classes=0); give one trained on the classes.'
        )
    pixels = _pixels(f'{owner}: the teacher {name}', model)
    interpolation = (getattr(model, 'pretrained_cfg', None) or {}).get('interpolation', 'bicubic')
    own = sharing_weights(model)
    return ModelTeacher(own, own, pixels, name, fixed_size(model), interpolation=interpolation)


def _headless(model: nn.Module) -> bool:
    return getattr(model, 'num_classes', None) == 0


def _pixels(
    owner: str, model: nn.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> PixelFormat:
    """The image format of a model: the given mean and std, or those of its ``pretrained_cfg``; RGB, as in timm."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    mean, std = cfg.get('mean') if mean is None else mean, cfg.get('std') if std is None else std
    if mean is None and std is None:
        return PixelFormat()
    if std is not None and max(std) > 1:
        raise SetupError(f'{owner}: mean and std must be on the 0 to 1 scale, as in timm, but std is {tuple(std)}.')
    mean, std = (None if numbers is None else [255 * x for x in numbers] for numbers in (mean, std))
    return PixelFormat().restated(owner, mean, std, 'rgb')


def _fit(
    owner: str, student: nn.Module, layer: nn.Module | None, teacher: Teacher, soft_loss: SoftLoss
) -> AffineReader | None:
    """The reader of the student's feature norm, if the soft loss needs it."""
    if not soft_loss.needs_feature_norm or soft_loss.loss_weight == 0:
        return None
    unfit = f'the teacher {", ".join(teacher.without_norm)}' if teacher.without_norm else None
    if layer is None:
        unfit = f'the student {type(student).__name__}'
    if unfit:
        raise SetupError(
            f'{owner}: {type(soft_loss).__name__} needs feature norms, but {unfit} has no single last affine '
            'layer (a mean of two heads has two norms, cosine logits have none); use '
            'DistillationTask(..., soft_loss=KDLoss()).'
        )
    return AffineReader(layer)  # type: ignore[arg-type]
