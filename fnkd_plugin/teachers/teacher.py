"""The interface of teachers."""

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
from fnkd_plugin.teachers.execution import Execution, Way
from fnkd_plugin.teachers.options import TeacherOptions
from fnkd_plugin.teachers.pixels import PixelFormat, converter
from fnkd_plugin.teachers.resize import Resize

_logger = logging.getLogger(__name__)


class Teacher(ABC):
    """Images in the student's format to a :class:`Prediction`; not a module, so that nothing finds or trains it.

    Attributes:
        name: Begins log lines and errors.
        has_feature_norm: Whether predictions have ``feature_norm`` and ``origin``.
        top_k: How many logits of each image its predictions hold, as ``SparsePrediction``; None for all.
        replay: The views of the training images that it knows
            (:class:`~fnkd_plugin.mm.replay.seeded_dataset.Replay`); None if it takes any image.
    """

    name: str
    has_feature_norm: bool
    top_k: int | None = None
    replay: Any = None

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """K of its predictions."""

    @property
    def without_norm(self) -> list[str]:
        """The names of the members without a feature norm; of a single teacher its own, or none."""
        return [] if self.has_feature_norm else [self.name]

    def match_classes(self, count: int, classes: Classes | None) -> None:
        """Match the teacher's classes with the student's, before training.

        Args:
            count: How many they are.
            classes: Their names, if known.

        Raises:
            SetupError: If the teacher's predictions cannot be of these classes, in this order.
        """
        ClassMap(self.name, self.num_classes).match(count, classes)

    def check(self, dataset: Any, preprocessor: nn.Module) -> None:  # noqa: B027
        """Check, before the first step, that the teacher has predictions for the training images.

        Args:
            dataset: The training set, seeded and stamping its samples as ``replay`` says.
            preprocessor: The student's data preprocessor.

        Raises:
            SetupError: If it only knows other images, or images that were mixed otherwise.
        """

    @abstractmethod
    def prepare(self, source: PixelFormat) -> None:
        """Set how the student's images are normalised, once and before training.

        Raises:
            SetupError: If they cannot be converted to the teacher's format.
        """

    @abstractmethod
    def predict(self, images: Tensor, data_samples: Sequence[Any] | None = None) -> Prediction:
        """The teacher's prediction for a batch, without gradient.

        Args:
            images: The student's preprocessed batch [N, C, H, W].
            data_samples: The data samples of the batch, by which a cached teacher finds its predictions.
        """


class ModelTeacher(Teacher):
    """A teacher that is an ``nn.Module``, run in eval mode (BN and dropout), without gradients, on the images' device.

    Args:
        model: The trained model. It is put in eval mode and stops requiring gradients, and its last affine layer gets a
            hook; for a module of the caller give :func:`sharing_weights`.
        forward: Images in the teacher's format to logits [N, K].
        pixels: The format the model was trained on.
        name: For messages.
        own_size: The one size of images that the model takes, if it takes only one.
        own_interpolation: How its images were resized.
        own_classes: The class names that came with the weights; ignored if they are of another number.
        **options: See :class:`~fnkd_plugin.teachers.options.TeacherOptions`; they come before the model's own.

    Raises:
        SetupError: If the model's output is not a tensor [N, K], or an option is unknown or does not fit.
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
            raise SetupError(f'{name}: its output is not a tensor of logits [N, K], but {_describe(output)}.')
        layer = find_last_affine(output, layer_outputs)
        self._reader = None if layer is None else AffineReader(layer).attach()
        self.has_feature_norm = layer is not None
        count = output.shape[1]
        if stated.classes is not None:
            own_classes = Classes.of(stated.classes, name)
        elif own_classes is not None and len(own_classes.names) != count:
            own_classes = None
        self._classes = ClassMap(name, count, own_classes, stated.class_map)
        # After the reader's hook, which has to be part of a compiled graph.
        self._run = Execution(name, self.model, forward, stated.execution)

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height and width to which images are resized; None if they stay as they are."""
        return self._resize.size

    @property
    def num_classes(self) -> int:
        """See :attr:`Teacher.num_classes`."""
        return self._classes.count

    @property
    def own_classes(self) -> Classes | None:
        """The names of all its classes, before any class map, if they are known."""
        return self._classes.own

    def match_classes(self, count: int, classes: Classes | None) -> None:
        """See :meth:`Teacher.match_classes`."""
        self._classes.match(count, classes)

    def prepare(self, source: PixelFormat) -> None:
        """See :meth:`Teacher.prepare`."""
        try:
            self._convert = converter(source, self.pixels)
        except SetupError as error:
            raise SetupError(
                f"{self.name}: the student's images ({source}) cannot be turned into the teacher's ({self.pixels}): "
                f"{error}. State the student's with Distiller(pixels=dict(mean=..., std=..., channel_order='rgb')), "
                "the teacher's with its own options of these names; mean and std are on the 0 to 255 scale. (A task "
                "of fnkd_plugin.timm takes the student's on the 0 to 1 scale.)"
            ) from error
        _logger.info(f'{self.name} sees: {self.pixels}, {self._resize}; it runs in {self._run}.')

    def predict(self, images: Tensor, data_samples: Sequence[Any] | None = None) -> Prediction:
        """See :meth:`Teacher.predict`."""
        assert self._convert is not None, 'prepare() comes first'
        if self._device != images.device:
            self.model.to(images.device)
            self._device = images.device
        student = Way.of_student(images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            pixels = self._resize(self._convert(images.float()))
            if self._reader is None:
                return self._classes.restrict(Prediction(self._run(pixels, student)))
            with self._reader:
                self._run(pixels, student)
            prediction = self._reader.take()
            assert prediction is not None
            return self._classes.restrict(prediction)


def sharing_weights(model: nn.Module) -> nn.Module:
    """A frozen copy that shares weights and buffers; the module itself keeps its mode, hooks and gradients."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo.update({id(b): b.detach() for b in model.buffers()})
    return copy.deepcopy(model, memo)


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f'of shape {tuple(output.shape)}'
    return type(output).__name__
