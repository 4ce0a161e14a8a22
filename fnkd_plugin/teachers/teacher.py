"""The teacher interface, and teachers that are modules."""

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError
from fnkd_plugin.prediction import Prediction
from fnkd_plugin.readers import AffineReader, ImageSize, find_last_affine, probe
from fnkd_plugin.teachers.class_map import ClassMap
from fnkd_plugin.teachers.class_names import Classes
from fnkd_plugin.teachers.execution import Execution, ExecutionMode
from fnkd_plugin.teachers.options import TeacherOptions
from fnkd_plugin.teachers.pixels import PixelFormat, converter
from fnkd_plugin.teachers.resize import Resize

_logger = logging.getLogger(__name__)


class Teacher(ABC):
    """Maps images in the student's format to a :class:`Prediction`.

    Not a module, so that it is not registered in the student or trained.

    Attributes:
        name: For log lines and errors.
        class_map: Its classes, and which of them the student's are.
        has_feature_norm: Whether predictions have ``feature_norm`` and ``origin``.
        top_k: The number of logits per image in its ``SparsePrediction``; None for all.
        replay: The training views that it has predictions for
            (:class:`~fnkd_plugin.mm.replay.seeded_dataset.Replay`); None if it accepts any image.
    """

    name: str
    class_map: ClassMap
    has_feature_norm: bool
    top_k: int | None = None
    replay: Any = None

    @property
    def num_classes(self) -> int:
        """The number of classes of its predictions."""
        return self.class_map.count

    @property
    def without_norm(self) -> list[str]:
        """The names of the teachers without a feature norm: this one, or members of an ensemble."""
        return [] if self.has_feature_norm else [self.name]

    def match_classes(self, count: int, classes: Classes | None) -> None:
        """Match the teacher's classes with the student's, before training.

        Args:
            count: The student's number of classes.
            classes: Their names, if known.

        Raises:
            SetupError: If the teacher's predictions are not for these classes in this order.
        """
        self.class_map.match(count, classes)

    def check(self, dataset: Any, preprocessor: nn.Module) -> None:  # noqa: B027
        """Check, before the first step, that the teacher has predictions for the training images.

        Args:
            dataset: The training set, seeded and with the sample metadata of ``replay``.
            preprocessor: The student's data preprocessor.

        Raises:
            SetupError: If it lacks predictions for these images or for their mixing.
        """

    @abstractmethod
    def prepare(self, source: PixelFormat) -> None:
        """Set the format of the student's images; called once before training.

        Raises:
            SetupError: If they cannot be converted to the teacher's format.
        """

    @abstractmethod
    def predict(self, images: Tensor, data_samples: Sequence[Any] | None = None) -> Prediction:
        """The teacher's prediction for a batch, without gradient.

        Args:
            images: The student's preprocessed batch [N, C, H, W].
            data_samples: The data samples of the batch; a cached teacher uses them to find its predictions.
        """


class ModelTeacher(Teacher):
    """A teacher that is an ``nn.Module``, run in eval mode, without gradients, on the device of the images.

    Args:
        model: The trained model. It is frozen and put in eval mode, and its last affine layer gets a hook; to keep a
            module unchanged, pass :func:`sharing_weights` of it.
        forward: Images in the teacher's format to logits [N, K].
        pixels: The image format that the model was trained on.
        name: For messages.
        own_size: The image size of a model that accepts only one.
        own_interpolation: The interpolation of its training images.
        own_classes: The class names that came with the weights; ignored if their number differs from K.
        **options: See :class:`~fnkd_plugin.teachers.options.TeacherOptions`; they override the model's own.

    Raises:
        SetupError: If the model's output is not a tensor [N, K], or an option is unknown or invalid.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[Tensor], Tensor],
        pixels: PixelFormat,
        name: str,
        own_size: ImageSize | None = None,
        own_interpolation: str = 'bicubic',
        own_classes: Classes | None = None,
        **options: Any,
    ) -> None:
        stated = TeacherOptions.of(name, options)
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.pixels = pixels.restated(name, stated.mean, stated.std, stated.channel_order)
        self._resize = Resize(
            name,
            own_size if stated.input_size is None else stated.input_size,
            stated.interpolation or own_interpolation,
        )
        self._convert: Callable[[Tensor], Tensor] | None = None
        self._device = next(model.parameters(), torch.empty(0)).device
        channels = None if self.pixels.mean is None else len(self.pixels.mean)
        output, layer_outputs = probe(self.model, forward, self.input_size, channels)
        if not isinstance(output, Tensor) or output.ndim != 2:
            found = f'of shape {tuple(output.shape)}' if isinstance(output, Tensor) else type(output).__name__
            raise SetupError(f'{name}: its output is not a tensor of logits [N, K], but {found}.')
        layer = find_last_affine(output, layer_outputs)
        self._reader = None if layer is None else AffineReader(layer).attach()
        self.has_feature_norm = layer is not None
        count = output.shape[1]
        if stated.classes is not None:
            own_classes = Classes.of(stated.classes, name)
        elif own_classes is not None and len(own_classes.names) != count:
            own_classes = None
        self.class_map = ClassMap(name, count, own_classes, stated.class_map)
        # After the reader's hook is attached, which must be part of a compiled graph.
        self._run = Execution(name, self.model, forward, stated.execution)

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height and width that images are resized to; None without resizing."""
        return self._resize.size

    def prepare(self, source: PixelFormat) -> None:
        """See :meth:`Teacher.prepare`."""
        try:
            self._convert = converter(source, self.pixels)
        except SetupError as error:
            raise SetupError(
                f"{self.name}: the student's images ({source}) cannot be converted to the teacher's ({self.pixels}): "
                f"{error}. State the student's with Distiller(pixels=dict(mean=..., std=..., channel_order='rgb')), "
                "the teacher's with its own options of these names; mean and std are on the 0 to 255 scale. (A task "
                "of fnkd_plugin.timm takes the student's on the 0 to 1 scale.)"
            ) from error
        _logger.info(f'{self.name}: input {self.pixels}, {self._resize}; runs in {self._run}.')

    def predict(self, images: Tensor, data_samples: Sequence[Any] | None = None) -> Prediction:
        """See :meth:`Teacher.predict`."""
        assert self._convert is not None, 'prepare() comes first'
        if self._device != images.device:
            self.model.to(images.device)
            self._device = images.device
        student = ExecutionMode.of_student(images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            pixels = self._resize(self._convert(images.float()))
            if self._reader is None:
                return self.class_map.restrict(Prediction(self._run(pixels, student)))
            with self._reader:
                self._run(pixels, student)
            prediction = self._reader.take()
            assert prediction is not None
            return self.class_map.restrict(prediction)


def sharing_weights(model: nn.Module) -> nn.Module:
    """A frozen copy that shares weights and buffers with the module, which is not changed."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo.update({id(b): b.detach() for b in model.buffers()})
    return copy.deepcopy(model, memo)
