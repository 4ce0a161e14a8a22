"""Checks before a run that data, model, teacher and label groups have the same classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmpretrain.models import ClsHead, HuggingFaceClassifier, ImageClassifier, TimmClassifier
from mmpretrain.registry import HOOKS
from torch import nn

from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.losses.alsr_loss import label_tables
from fnkd_plugin.mm.distiller import Distiller
from fnkd_plugin.mm.labels import class_names
from fnkd_plugin.mm.tasks import other_task, unwrapped
from fnkd_plugin.teachers.class_names import Classes, differences, name_key

# Larger data sets are subsampled evenly: reading all labels of ImageNet takes seconds.
_MAX_LABELS = 1_000_000


def class_count(model: nn.Module) -> int | None:
    """K of a single-label classifier of MMPretrain; None for other models, or if it has no such attribute."""
    if not isinstance(model, (ImageClassifier, TimmClassifier, HuggingFaceClassifier)):
        return None
    head = getattr(model, 'head', None)
    if head is not None and (other_task(type(head)) or not isinstance(head, ClsHead)):
        return None
    inner = getattr(model, 'model', None)
    counts = [getattr(owner, 'num_classes', None) for owner in (head, inner, getattr(model, 'backbone', None))]
    counts.append(getattr(getattr(inner, 'config', None), 'num_labels', None))
    return next((count for count in counts if count and count > 0), None)


def check_class_counts(model: nn.Module) -> None:
    """Check that label tables (``ALSRLoss``) have as many classes as their classifiers.

    Raises:
        SetupError: If not; it names both numbers.
    """
    for owner, loss in label_tables(model):
        count = getattr(owner, 'num_classes', None) or getattr(getattr(owner, 'model', None), 'num_classes', None)
        if count is not None:
            loss.check_class_count(count, type(owner).__name__)


@HOOKS.register_module()
class CheckClassesHook(Hook):
    """Checks the classes of a single-label classifier before training and testing.

    Training, validation and test set must have as many classes as the model, and labels within them. The class names of
    the validation set, the groups of ``ALSRLoss`` and the teacher must be those of the training set.
    ``tools/train.py``, ``tools/test.py`` and :func:`fnkd_plugin.distill` add this hook.
    """

    # Before the hooks that run the teacher.
    priority = 'VERY_HIGH'

    def before_train(self, runner: Any) -> None:
        """Check training and validation set.

        Raises:
            SetupError: If counts, labels or names differ; it lists the first that do.
        """
        model = unwrapped(runner.model)
        train = runner.train_dataloader.dataset
        _check_dataset('train_dataloader', train, model)
        _check_mixing(model)
        if runner._val_loop is not None:
            val = runner.val_loop.dataloader.dataset
            _check_dataset('val_dataloader', val, model)
            if class_count(model) is not None:
                _check_same_names(class_names(val), class_names(train), f'val_dataloader: {type(val).__name__}')
        names = class_names(train)
        if not names:
            return
        for _, loss in label_tables(model):
            loss.taxonomy.check_classes(names, f'ALSRLoss: {type(train).__name__}')
        if isinstance(model, Distiller):
            _check_teacher(model, names, type(train).__name__)

    def before_test(self, runner: Any) -> None:
        """Check the test set.

        Raises:
            SetupError: If counts or labels differ.
        """
        _check_dataset('test_dataloader', runner.test_loop.dataloader.dataset, unwrapped(runner.model))


def _check_dataset(loader: str, dataset: Any, model: nn.Module) -> None:
    count, names, owner = class_count(model), class_names(dataset), f'{loader}: {type(dataset).__name__}'
    if count is None:
        return
    if count == 1:
        raise SetupError(f'{owner}: the model has 1 class, so there is nothing to learn; give at least 2.')
    if names and len(names) != count:
        raise SetupError(
            f'{owner} has {len(names)} classes, the model {count}; give --cfg-options '
            f'{_option_of_count(model)}={len(names)}, or the data of all {count} classes (check for missing or extra '
            'folders).'
        )
    if not hasattr(dataset, 'get_data_info'):
        return
    labels = []
    for i in range(0, len(dataset), -(-len(dataset) // _MAX_LABELS)):
        label = dataset.get_data_info(i).get('gt_label')
        if label is None or np.size(label) != 1:
            if label is not None and isinstance(model, Distiller):
                raise SetupError(
                    f'{owner}: image {i} has {np.size(label)} labels; soft targets are distributions over the classes '
                    'of a single-label classifier.'
                )
            return
        labels.append(int(np.ravel(label)[0]))
    wrong = sorted({label for label in labels if not 0 <= label < count})
    if wrong:
        raise SetupError(
            f'{owner} has the labels {first_few(wrong)}, the model {count} classes, 0 to {count - 1}; fix the labels '
            f'or give --cfg-options {_option_of_count(model)}=N.'
        )


def _check_mixing(model: nn.Module) -> None:
    """Check the number of classes of mixup and CutMix targets."""
    count, preprocessor = class_count(model), getattr(model, 'data_preprocessor', None)
    mixed = getattr(preprocessor, 'num_classes', None) if getattr(preprocessor, 'batch_augments', None) else None
    if count and mixed and mixed != count:
        raise SetupError(
            f'data_preprocessor: mixed targets have {mixed} classes, the model {count}; give --cfg-options '
            f'data_preprocessor.num_classes={count}.'
        )


def _option_of_count(model: nn.Module) -> str:
    return 'model.head.num_classes' if getattr(model, 'head', None) is not None else 'model.num_classes'


def _check_same_names(names: Sequence[str], train: Sequence[str], owner: str) -> None:
    """Check classes and order of a validation set; names that are all different are assumed to be synonyms."""
    missing = [name for name in train if name not in set(names)]
    extra = [name for name in names if name not in set(train)]
    if not names or not train or (len(extra) == len(set(names)) and len(names) == len(train)):
        return
    if missing or extra:
        parts = [f'{verb} {first_few(which)}' for verb, which in (('lacks', missing), ('adds', extra)) if which]
        raise SetupError(
            f'{owner} has other classes than the training set: it {" and ".join(parts)}, so its labels mean other '
            'classes; give the same folders, or classes=FILE to both.'
        )
    different = [f'{k}: {a!r}, not {b!r}' for k, (a, b) in enumerate(zip(names, train, strict=True)) if a != b]
    if different:
        raise SetupError(
            f"{owner} has the training set's classes in another order ({first_few(different)}); give the same "
            'classes=FILE to both.'
        )


def _check_teacher(model: Any, names: list[str], dataset: str) -> None:
    if model.distillation.classes is not None:
        # These match the teacher's already, whatever the data set's names are.
        _refuse_another_order(model.distillation.classes.names, names, dataset)
    else:
        teacher = model.distillation.teacher
        if len(names) == teacher.num_classes:
            teacher.match_classes(len(names), Classes.of(names, dataset))


def _refuse_another_order(stated: Sequence[str], names: Sequence[str], dataset: str) -> None:
    different = differences(stated, names)
    if different and sorted(map(name_key, stated)) == sorted(map(name_key, names)):
        pairs = [f'{k}: {stated[k]!r}, not {names[k]!r}' for k in different]
        raise SetupError(
            f'Distiller: classes are those of {dataset} in another order ({first_few(pairs)}) than its labels; '
            'leave classes out.'
        )
