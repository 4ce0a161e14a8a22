"""The classes of a teacher, and of labels softened by names, must be those of the data."""

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmpretrain.registry import HOOKS
from torch import nn

from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.losses.alsr_loss import label_tables
from fnkd_plugin.mm.distiller import Distiller
from fnkd_plugin.taxonomy.names import normalised
from fnkd_plugin.teachers.class_names import Classes


def check_class_counts(model: nn.Module) -> None:
    """Refuse a label table of another number of classes than its classifier says it has.

    Raises:
        SetupError: With both numbers.
    """
    for owner, loss in label_tables(model):
        count = getattr(owner, 'num_classes', None) or getattr(getattr(owner, 'model', None), 'num_classes', None)
        if count is not None:
            loss.check_class_count(count, type(owner).__name__)


@HOOKS.register_module()
class CheckClassesHook(Hook):
    """Refuses a data set with other classes than the groups' of ``ALSRLoss`` or the teacher's, or in another order.

    ``tools/train.py`` adds it to every run; a config that stock tools train lists it in ``custom_hooks``. It comes
    before the hooks that may ask the teacher.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Any) -> None:
        """Compare both, before the first step.

        Raises:
            SetupError: With the first names that differ and their positions.
        """
        dataset = runner.train_dataloader.dataset
        names = (getattr(dataset, 'metainfo', None) or {}).get('classes')
        if not names:
            return
        for _, loss in label_tables(runner.model):
            loss.taxonomy.check_classes(names, f'ALSRLoss: {type(dataset).__name__}')
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(model, Distiller):
            return
        if model.distillation.classes is not None:
            # They have been compared with the teacher's, whatever the data call them.
            _refuse_another_order(model.distillation.classes.names, names, type(dataset).__name__)
        else:
            teacher = model.distillation.teacher
            if len(names) == teacher.num_classes:
                teacher.match_classes(len(names), Classes.of(names, type(dataset).__name__))


def _refuse_another_order(stated: Sequence[str], names: Sequence[str], dataset: str) -> None:
    a, b = ([normalised(name).lower() for name in classes] for classes in (stated, names))
    if a != b and sorted(a) == sorted(b):
        different = [
            f'{k}: {x!r}, not {y!r}' for k, (x, y) in enumerate(zip(stated, names, strict=True)) if a[k] != b[k]
        ]
        raise SetupError(
            f'Distiller: classes are those of {dataset} in another order ({first_few(different)}), but its labels '
            'are in its own; leave classes out.'
        )
