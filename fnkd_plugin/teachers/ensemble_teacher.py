"""An ensemble of teachers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fnkd_plugin.errors import SetupError, check_number
from fnkd_plugin.prediction import EnsemblePrediction, Prediction
from fnkd_plugin.teachers.class_names import Classes
from fnkd_plugin.teachers.pixels import PixelFormat
from fnkd_plugin.teachers.teacher import Teacher


class EnsembleTeacher(Teacher):
    """The weighted mean of several teachers' distributions, each after the temperature policy.

    Each teacher has its own normalisation, input size and class map; see
    :class:`~fnkd_plugin.prediction.EnsemblePrediction`.

    Args:
        teachers: At least one teacher; in a config, its config. Nested ensembles are flattened.
        weights: One weight > 0 per teacher, normalised to sum 1; equal if None.

    Raises:
        SetupError: If there are no teachers, the weights do not fit, or two caches have different views.
    """

    def __init__(self, teachers: Sequence[Teacher], weights: Sequence[float] | None = None) -> None:
        if not teachers:
            raise SetupError('EnsembleTeacher: teachers is empty; give at least one.')
        weights = [1.0] * len(teachers) if weights is None else weights
        if len(weights) != len(teachers):
            raise SetupError(f'EnsembleTeacher: {len(teachers)} teachers need as many weights, not {len(weights)}.')
        checked = [check_number('EnsembleTeacher', 'a weight', weight, positive=True) for weight in weights]
        self.weights = [weight / sum(checked) for weight in checked]
        self.teachers = list(teachers)
        for teacher in self.teachers:
            if not isinstance(teacher, Teacher):
                raise SetupError(
                    f'EnsembleTeacher: {type(teacher).__name__} is not a teacher; wrap a model in CallableTeacher, '
                    'build a config with MODELS.build.'
                )
            if teacher.top_k:
                raise SetupError(
                    f'EnsembleTeacher: {teacher.name} has only the largest logits, which cannot be averaged; make its '
                    'cache without --top-k.'
                )
        replays = {teacher.replay for teacher in self.teachers if teacher.replay}
        if len(replays) > 1:
            raise SetupError(
                f'EnsembleTeacher: its cached teachers have different views: {", ".join(sorted(map(str, replays)))}; '
                'make all caches with one --seed, one number of --views and, for mixed images, one batch size.'
            )
        self.replay = next(iter(replays), None)
        self.name = f'EnsembleTeacher({", ".join(teacher.name for teacher in self.teachers)})'
        self.class_map = self.teachers[0].class_map  # the others agree, see match_classes()
        self.has_feature_norm = all(teacher.has_feature_norm for teacher in self.teachers)

    @property
    def without_norm(self) -> list[str]:
        """See :attr:`Teacher.without_norm`."""
        return [name for teacher in self.teachers for name in teacher.without_norm]

    def match_classes(self, count: int, classes: Classes | None) -> None:
        """See :meth:`Teacher.match_classes`."""
        for teacher in self.teachers:
            teacher.match_classes(count, classes)

    def check(self, dataset: Any, preprocessor: nn.Module) -> None:
        """See :meth:`Teacher.check`."""
        for teacher in self.teachers:
            teacher.check(dataset, preprocessor)

    def prepare(self, source: PixelFormat) -> None:
        """See :meth:`Teacher.prepare`."""
        for teacher in self.teachers:
            teacher.prepare(source)

    def predict(self, images: Tensor, data_samples: Sequence[Any] | None = None) -> Prediction:
        """See :meth:`Teacher.predict`."""
        members = [teacher.predict(images, data_samples) for teacher in self.teachers]
        return EnsemblePrediction.of(members, self.weights)
