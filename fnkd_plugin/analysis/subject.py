"""The subject of an analysis: a classifier, the images of a split, and optionally a teacher."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmpretrain.registry import DATASETS, MODELS
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import dicts_in, is_distilled, type_name
from fnkd_plugin.mm.distill_config import teacher_config
from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher
from fnkd_plugin.mm.training import check_data_roots
from fnkd_plugin.prediction import Prediction
from fnkd_plugin.teachers import PixelFormat, Teacher
from fnkd_plugin.teachers.class_names import Classes


@dataclass(frozen=True)
class Batch:
    """The indices of N images, the preprocessed images [N, C, H, W], and their predictions."""

    indices: Sequence[int]
    images: Tensor
    model: Prediction
    teacher: Prediction | None

    @property
    def source(self) -> Prediction:
        """The prediction whose soft labels are analysed: the teacher's if it has a feature norm, else the model's."""
        return self.model if self.teacher is None or self.teacher.feature_norm is None else self.teacher


@dataclass(frozen=True)
class Subject:
    """A classifier, a data set, and optionally a teacher.

    Attributes:
        model: The classifier, with a feature norm.
        teacher: A teacher for the same classes, or None.
        dataset: The split, with the evaluation pipeline.
        classes: The names of the K classes.
        labels: The labels of the data set, [N].
        clean: The labels before flipping by :class:`~fnkd_plugin.mm.datasets.FlippedLabels`; else ``labels``.
        could_flip: Whether it could have flipped each label, booleans [N]; else all true.
        pixels: The format of the images, with a known channel order.
        batch_size: Images per batch.
        num_workers: Worker processes of the data loader.
    """

    model: MMPretrainTeacher
    teacher: Teacher | None
    dataset: Any
    classes: list[str]
    labels: NDArray[np.int64]
    clean: NDArray[np.int64]
    could_flip: NDArray[np.bool_]
    pixels: PixelFormat
    batch_size: int
    num_workers: int

    def batches(self, indices: Sequence[int] | None = None) -> Iterator[Batch]:
        """Iterate over the batches of ``indices`` (all by default), in order.

        Raises:
            SetupError: If the pipeline changes a label.
        """
        chosen: Sequence[int] = range(len(self.labels)) if indices is None else indices
        parts: Any = [chosen[i : i + self.batch_size] for i in range(0, len(chosen), self.batch_size)]
        loader = DataLoader(self.dataset, batch_sampler=parts, num_workers=self.num_workers, collate_fn=pseudo_collate)
        preprocess: Any = self.model.model.data_preprocessor
        for part, raw in zip(parts, loader, strict=True):
            with torch.no_grad():
                data = preprocess(raw, False)
            images, samples = data['inputs'], data['data_samples']
            if [int(sample.gt_label) for sample in samples] != self.labels[part].tolist():
                raise SetupError(
                    'analysis: the pipeline changes labels or leaves out images, so that images and labels cannot '
                    'be matched; use one that only loads, resizes and packs.'
                )
            teacher = None if self.teacher is None else self.teacher.predict(images, samples)
            yield Batch(part, images, self.model.predict(images), teacher)


def build_subject(
    cfg: Config,
    checkpoint: str | Path,
    split: str,
    teacher: str | None = None,
    teacher_checkpoint: str | None = None,
) -> Subject:
    """Build the subject of an analysis from a config and its checkpoint.

    A distilled config gives its student, and its teacher if the teacher's weights exist. Training images use the
    pipeline of the validation (or test) images, without augmentation.

    Args:
        cfg: The config, plain or distilled.
        checkpoint: The classifier's weights.
        split: ``'train'``, ``'val'`` or ``'test'``.
        teacher: The name of another teacher, see :func:`~fnkd_plugin.mm.distill_config.teacher_config`.
        teacher_checkpoint: The weights of that teacher, or, without ``teacher``, of the config's teacher.

    Raises:
        SetupError: If a part is missing or does not fit.
    """
    loader = _loader_of(cfg, split)
    model = MMPretrainTeacher(cfg, checkpoint)
    if not model.has_feature_norm:
        raise SetupError(
            f'analysis: {type(model.model).__name__} has no single last affine layer whose input has a norm (a mean of '
            'several heads, a cosine?), so it has no feature norm. Give a model with one linear classifier.'
        )
    model.model.to('cuda' if torch.cuda.is_available() else 'cpu')
    model.prepare(model.pixels)
    stated = dict(cfg.model.get('pixels') or {}) if is_distilled(cfg) else {}
    pixels = model.pixels.restated('analysis: pixels', **stated)
    compared = _build_teacher(cfg, teacher, teacher_checkpoint)
    dataset = DATASETS.build(loader['dataset'])
    count = model.num_classes
    names = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    classes = [str(name) for name in names or range(count)]
    if len(classes) != count:
        raise SetupError(f'analysis: the model has {count} classes, the data set names {len(classes)}.')
    if compared is not None:
        compared.prepare(pixels)
        compared.match_classes(count, Classes.of(names, 'analysis') if names else None)
    if pixels.channel_order is None:
        # For pictures; our choice: what MMCV's loader gives, or else what CIFAR and other images in memory are.
        from_files = any(type_name(node).endswith('LoadImageFromFile') for node in dicts_in(loader['dataset']))
        pixels = replace(pixels, channel_order='bgr' if from_files else 'rgb')
    of_images = np.array([_labels_of(dataset, i, count) for i in range(len(dataset))])
    labels, clean, could_flip = of_images.T
    batch_size, workers = loader['batch_size'], loader.get('num_workers', 0)
    return Subject(
        model, compared, dataset, classes, labels, clean, could_flip.astype(bool), pixels, batch_size, workers
    )


def _loader_of(cfg: Config, split: str) -> dict:
    name = f'{split}_dataloader'
    if not cfg.get(name):
        raise SetupError(f'analysis: the config has no {name}; choose another --split.')
    check_data_roots(cfg, [name])
    loader = copy.deepcopy(cfg[name].to_dict())
    if split == 'train':
        evaluation = cfg.get('val_dataloader') or cfg.get('test_dataloader')
        pipeline = next((node['pipeline'] for node in dicts_in(evaluation) if node.get('pipeline')), None)
        if pipeline is None:
            raise SetupError(
                'analysis: the config has no val_dataloader or test_dataloader whose pipeline could show the training '
                'images without augmentation; give one, or choose another --split.'
            )
        for node in [node for node in dicts_in(loader['dataset']) if 'pipeline' in node]:
            node['pipeline'] = copy.deepcopy(list(pipeline))
    return loader


def _build_teacher(cfg: Config, name: str | None, checkpoint: str | None) -> Teacher | None:
    if name is not None:
        return MODELS.build(teacher_config(name, checkpoint))
    if not is_distilled(cfg):
        if checkpoint is not None:
            raise SetupError('analysis: the config names no teacher; give --teacher with --teacher-checkpoint.')
        return None
    named = copy.deepcopy(cfg.model.teacher)
    path = named.get('checkpoint')
    if checkpoint is not None:
        named['checkpoint'] = checkpoint
    elif isinstance(path, str) and '://' not in path and not Path(path).is_file():
        return None
    teacher = MODELS.build(named)
    # A cached teacher has predictions only for the augmented training images.
    return None if teacher.replay is not None else teacher


def _labels_of(dataset: Any, index: int, num_classes: int) -> tuple[int, int, bool]:
    """An image's label, its label before flipping, and whether it could have been flipped."""
    info = dataset.get_data_info(index)
    label = info.get('gt_label')
    if label is None or np.ndim(label) > 0 or not 0 <= label < num_classes:
        raise SetupError(
            f'analysis: image {index} has no label of 0 to {num_classes - 1}, but {label!r}; analysis needs labelled '
            'images of one class each.'
        )
    return int(label), int(info.get('clean_label', label)), info.get('could_flip', True)
