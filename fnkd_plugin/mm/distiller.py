"""The distilled model: the student itself, with an extended loss."""

import functools
import logging
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from mmengine.model import BaseModel
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError, check_several_classes
from fnkd_plugin.losses.alsr_loss import label_tables
from fnkd_plugin.mm.channels_last import has_channels_last_weights
from fnkd_plugin.mm.distill_head import DistillHead
from fnkd_plugin.mm.labels import are_labelled, hard_labels
from fnkd_plugin.mm.step import Step
from fnkd_plugin.mm.tasks import adds_outputs, check_single_label, check_trainable, forward_to_logits
from fnkd_plugin.prediction import Prediction
from fnkd_plugin.readers import (
    AffineReader,
    LogitReader,
    Reader,
    SumReader,
    find_last_affine,
    find_last_module,
    probe,
    without_readers,
)
from fnkd_plugin.rng import isolated_rng
from fnkd_plugin.taxonomy.names import ClassNames
from fnkd_plugin.teachers.class_names import Classes
from fnkd_plugin.teachers.execution import is_autocast
from fnkd_plugin.teachers.pixels import PixelFormat, format_of_preprocessor
from fnkd_plugin.teachers.teacher import Teacher

if TYPE_CHECKING:

    class _Student(nn.Module):
        data_preprocessor: nn.Module

else:
    _Student = object
_logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Distillation:
    """What distillation adds to a student.

    A plain object outside the module tree, so that ``state_dict``, optimiser, DDP, ``train()`` and ``apply`` do not see
    the teacher. Copies of the student (EMA) share it.

    Attributes:
        teacher: The teacher.
        head: The soft losses.
        reader: Reads the student's logits.
        classes: Names of the student's classes, if given; they match the teacher's.
        channels_last: Whether the student's weights are in channels-last memory order; under autocast the teacher
            then runs in it, too.
        step: The last training step, for the log.
    """

    teacher: Teacher
    head: DistillHead
    reader: Reader
    classes: Classes | None = None
    channels_last: bool = False
    step: Step | None = None

    def __deepcopy__(self, memo: dict) -> 'Distillation':
        return self

    def predict(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> Prediction:
        """The teacher's prediction for the student's batch; the state of all random generators is kept."""
        if self.channels_last and is_autocast(inputs.device):  # the batch is contiguous, whatever the weights are
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with isolated_rng():
            return self.teacher.predict(inputs, data_samples)


@MODELS.register_module()
class Distiller(_Student):
    """A classifier trained with the soft targets of a teacher.

    ``Distiller(student, teacher, head)`` builds the student and returns it, its class changed to a subclass of
    :class:`Distiller` and its own. Only ``forward(mode='loss')`` differs: the teacher predicts the batch, the student's
    own loss runs, and :class:`DistillHead` adds the soft losses. Checkpoints, parameters, hooks and tools see the plain
    student.

    Args:
        student: A single-label classifier of MMPretrain, or its config.
        teacher: A :class:`~fnkd_plugin.teachers.Teacher`, or its config.
        head: A :class:`DistillHead`, or its config.
        pixels: Format of the student's batches (``mean``, ``std`` on the 0 to 255 scale, ``channel_order``) where its
            data preprocessor does not define it, see :func:`~fnkd_plugin.teachers.pixels.format_of_preprocessor`.
        classes: Names of the student's classes (a list, a text file, a data set of MMPretrain), to compare with the
            teacher's; ``tools/train.py`` passes those of the training set.
        data_preprocessor: Passed to the student; MMEngine passes a config's top-level one here.

    Raises:
        SetupError: If student, teacher and head do not match; it names both sides and the fix.
    """

    _distillation: Distillation

    def __new__(cls, student: dict | BaseModel | None = None, *args: Any, **kwargs: Any) -> 'Distiller':
        """The student itself, built, with its class changed."""
        if cls is not Distiller:  # copy or pickle
            return super().__new__(cls)
        if isinstance(student, dict):
            student = dict(student)
            if kwargs.get('data_preprocessor') is not None:
                student.setdefault('data_preprocessor', kwargs['data_preprocessor'])
            student = MODELS.build(student)
        if not isinstance(student, BaseModel):
            raise SetupError(f'Distiller: the student must be a model of MMPretrain, but is {type(student).__name__}.')
        _check_student(student)
        student.__class__ = _distilled_class(type(student))  # type: ignore[arg-type]
        return student

    def __init__(
        self,
        student: dict | BaseModel,
        teacher: dict | Teacher,
        head: dict | DistillHead,
        pixels: dict | None = None,
        classes: ClassNames | None = None,
        data_preprocessor: dict | None = None,
    ) -> None:
        # Not super().__init__(): __new__ returned an initialised student.
        try:
            with isolated_rng():
                teacher = MODELS.build(teacher) if isinstance(teacher, dict) else teacher
                head = MODELS.build(head) if isinstance(head, dict) else head
                named = None if classes is None else Classes.of(classes, 'Distiller: classes')
                reader = _fit(self, teacher, head, pixels or {}, named)
        except BaseException:
            self.__class__ = _student_class(self)  # the caller's student is left unchanged
            raise
        self._distillation = Distillation(teacher, head, reader, named, has_channels_last_weights(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time, so pickle and copy need a function.
        return _new_distilled, (_student_class(self),), self.__dict__

    @property
    def distillation(self) -> Distillation:
        """The teacher, the soft losses and the rest that distillation added."""
        return self._distillation

    def student(self) -> Any:
        """A copy of the plain student, to export, script or quantise."""
        plain = without_readers(self)
        plain.__class__ = _student_class(self)
        del plain._distillation
        return plain

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor', **kwargs: Any) -> Any:
        """The student's forward; in mode ``'loss'`` with the soft losses added."""
        if mode != 'loss':
            return super().forward(inputs, data_samples, mode, **kwargs)
        head, reader = self._distillation.head, self._distillation.reader
        if not head.active:
            return head.scale_hard(super().forward(inputs, data_samples, mode, **kwargs))
        # The teacher first, so that its activations are freed before the student's are kept.
        teacher = self._distillation.predict(inputs, data_samples)
        labelled = are_labelled(data_samples)
        own: dict[str, Any] = {}
        with reader:
            if labelled or not data_samples:
                own = super().forward(inputs, data_samples, mode, **kwargs)
            elif head.hard_weight == 0:
                super().forward(inputs, data_samples, 'tensor', **kwargs)
            else:
                raise ValueError(
                    'Distiller: the images have no labels; DistillHead(hard_weight=0) trains on the teacher alone.'
                )
        student = reader.take()
        if student is None:
            raise RuntimeError(
                f'Distiller: the loss of {_student_class(self).__name__} does not call the module that computes its '
                'logits, so that they cannot be read.'
            )
        self._distillation.step = Step.of(student, teacher, data_samples, own)
        labels = hard_labels(data_samples) if head.needs_labels else None
        return {**head.scale_hard(own), **head(student, teacher, labels)}


@functools.cache
def _distilled_class(student: type) -> type:
    def fill(namespace: dict[str, Any]) -> None:
        namespace['__module__'] = student.__module__

    return types.new_class(f'Distilled{student.__name__}', (Distiller, student), {}, fill)


def _student_class(distilled: Any) -> Any:
    return type(distilled).__mro__[2]


def _new_distilled(student: type) -> Distiller:
    cls: Any = _distilled_class(student)
    return cls.__new__(cls)


def _check_student(student: BaseModel) -> None:
    kind = type(student).__name__
    if isinstance(student, Distiller):
        raise SetupError('Distiller: the student is a Distiller already; give its own student.')
    taken = [name for name in ('_distillation', 'distillation', 'student') if hasattr(student, name)]
    if taken:
        raise SetupError(f'Distiller: {kind} has an attribute {taken[0]!r}, which Distiller would hide.')
    check_single_label('Distiller: the student', student)
    check_trainable('Distiller: the student', student)


def _student_pixels(preprocessor: nn.Module, stated: dict) -> PixelFormat:
    unknown = sorted(set(stated) - {'mean', 'std', 'channel_order'})
    if unknown:
        raise SetupError(f'Distiller: pixels takes mean, std and channel_order, not {", ".join(unknown)}.')
    return format_of_preprocessor(preprocessor).restated('Distiller: pixels', **stated)


def _fit(student: nn.Module, teacher: Teacher, head: DistillHead, pixels: dict, named: Classes | None) -> Reader:
    if not isinstance(teacher, Teacher):
        raise SetupError(
            f'Distiller: the teacher must be one of fnkd_plugin.teachers, but is {type(teacher).__name__}; '
            'wrap timm models in TimmTeacher and MMPretrain models in MMPretrainTeacher.'
        )
    if not isinstance(head, DistillHead):
        raise SetupError(f'Distiller: the head must be a DistillHead, but is {type(head).__name__}.')
    kind = _student_class(student).__name__
    inner = type(getattr(student, 'head', None) or student).__name__
    output, ran = probe(student, forward_to_logits(student))
    layer = find_last_affine(output, ran)
    summed = adds_outputs(student)
    module: Any = student.head if summed else find_last_module(output, ran)
    if module is None:
        raise SetupError(
            f"Distiller: the student's logits cannot be found: the output of {kind} ({inner}) is not a tensor [N, K] "
            'of one of its modules (features without a classifier?). Give a student with a classifier, such as '
            'LinearClsHead.'
        )
    num_classes = output.numel()  # of one image; LeNet squeezes the batch away
    for _, loss in label_tables(student):
        loss.check_class_count(num_classes, 'the student')
    if named is not None and len(named.names) != num_classes:
        raise SetupError(f'Distiller: the student has {num_classes} classes, but classes names {len(named.names)}.')
    check_several_classes('Distiller: the student', num_classes)
    teacher.match_classes(num_classes, named)
    if head.needs_feature_norm and layer is None:
        raise SetupError(
            f'Distiller: a soft loss needs feature norms, but the logits of {kind} ({inner}) come from no single '
            'last affine layer (cosines have no feature norm, a mean or sum of two heads has two); use KDLoss.'
        )
    if head.needs_feature_norm and not teacher.has_feature_norm:
        raise SetupError(
            f'Distiller: a soft loss needs feature norms, but {", ".join(teacher.without_norm)} has no single last '
            'affine layer; use KDLoss.'
        )
    source = _student_pixels(student.data_preprocessor, pixels)  # type: ignore[arg-type]
    if teacher.top_k and head.needs_all_logits:
        raise SetupError(
            f'Distiller: {head.needs_all_logits[0]} needs all logits, but {teacher.name} keeps the {teacher.top_k} '
            'largest of each image; use KDLoss or FNKDLoss, or make the cache without --top-k.'
        )
    teacher.prepare(source)
    _logger.info(f'Distiller: {kind} ({num_classes} classes) learns from {teacher.name}; images: {source}.')
    reader: Reader
    if layer is not None:
        reader = AffineReader(layer)
    else:
        reader = SumReader(module) if summed else LogitReader(module, ran[module])
    return reader.attach()
