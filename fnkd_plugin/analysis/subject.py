"""The subject of an analysis: a classifier, the images of a split, and optionally a teacher."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmpretrain.registry import DATASETS, MODELS
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import is_distilled, named_dicts
from fnkd_plugin.mm.mmpretrain_teacher import MMPretrainTeacher
from fnkd_plugin.mm.training import check_data_roots
from fnkd_plugin.prediction import Prediction
from fnkd_plugin.teachers import PixelFormat, Teacher
from fnkd_plugin.teachers.class_names import Classes

SPLITS = ('train', 'val', 'test')


@dataclass(frozen=True)
class Batch:
    """Preprocessed images [N, C, H, W], the labels of their samples, and the predictions."""

    inputs: Tensor
    labels: list[int]
    model: Prediction
    teacher: Prediction | None


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
        device: The device of the models.
    """

    model: MMPretrainTeacher
    teacher: Teacher | None
    dataset: Any
    classes: list[str]
    labels: np.ndarray
    clean: np.ndarray
    could_flip: np.ndarray
    pixels: PixelFormat
    batch_size: int
    num_workers: int
    device: torch.device

    def batches(self, indices: Sequence[int] | np.ndarray | None = None) -> Iterator[Batch]:
        """Iterate over the batches of ``indices`` (all by default), in order.

        Raises:
            SetupError: If the pipeline changes a label.
        """
        chosen = range(len(self.labels)) if indices is None else [int(i) for i in indices]
        loader = DataLoader(
            self.dataset if indices is None else Subset(self.dataset, chosen),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=pseudo_collate,
        )
        preprocess: Any = self.model.model.data_preprocessor
        start = 0
        for raw in loader:
            with torch.no_grad():
                data = preprocess(raw, False)
                inputs = data['inputs']
                labels = [int(sample.gt_label) for sample in data['data_samples']]
                expected = [int(self.labels[i]) for i in chosen[start : start + len(labels)]]
                if labels != expected:
                    raise SetupError(
                        'analysis: the pipeline changes labels or leaves out images, so that images and labels cannot '
                        'be matched; use one that only loads, resizes and packs.'
                    )
                start += len(labels)
                teacher = None if self.teacher is None else self.teacher.predict(inputs, data['data_samples'])
                yield Batch(inputs, labels, self.model.predict(inputs), teacher)


def build_subject(
    cfg: Config,
    checkpoint: str | Path,
    split: str,
    teacher_config: str | None = None,
    teacher_checkpoint: str | None = None,
) -> Subject:
    """Build the subject of an analysis from a config and its checkpoint.

    A distilled config gives its student, and its teacher if the teacher's weights exist. Training images use the
    pipeline of the validation (or test) images, without augmentation.

    Args:
        cfg: The config, plain or distilled.
        checkpoint: The classifier's weights.
        split: ``'train'``, ``'val'`` or ``'test'``.
        teacher_config: An MMPretrain config of another teacher.
        teacher_checkpoint: The weights of that teacher, or, without ``teacher_config``, of the config's teacher.

    Raises:
        SetupError: If a part is missing or does not fit.
    """
    loader = _loader_of(cfg, split)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    model = MMPretrainTeacher(cfg, checkpoint)
    if not model.has_feature_norm:
        raise SetupError(
            f'analysis: {type(model.model).__name__} has no single last affine layer whose input has a norm (a mean of '
            'several heads, a cosine?), so it has no feature norm. Give a model with one linear classifier.'
        )
    model.model.to(device)
    model.prepare(model.pixels)
    stated = dict(cfg.model.get('pixels') or {}) if is_distilled(cfg) else {}
    pixels = model.pixels.restated('analysis: pixels', **stated)
    teacher = _build_teacher(cfg, teacher_config, teacher_checkpoint)
    dataset = DATASETS.build(loader['dataset'])
    labels, clean, could_flip = _labels_of(dataset, model.num_classes)
    names = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    classes = [printable(name) for name in names or range(model.num_classes)]
    if len(classes) != model.num_classes:
        raise SetupError(f'analysis: the model has {model.num_classes} classes, the data set names {len(classes)}.')
    if teacher is not None:
        teacher.prepare(pixels)
        teacher.match_classes(model.num_classes, Classes.of(names, 'analysis') if names else None)
    workers = loader.get('num_workers', 0)
    return Subject(
        model,
        teacher,
        dataset,
        classes,
        labels,
        clean,
        could_flip,
        _with_channel_order(pixels, loader),
        loader['batch_size'],
        workers,
        device,
    )


def printable(name: object) -> str:
    """A name that can be encoded in UTF-8; invalid bytes of file names are escaped."""
    return str(name).encode('utf-8', 'backslashreplace').decode()


def _loader_of(cfg: Config, split: str) -> dict:
    if split not in SPLITS:
        raise SetupError(f'analysis: split is one of {", ".join(SPLITS)}, not {split!r}.')
    name = f'{split}_dataloader'
    if not cfg.get(name):
        raise SetupError(f'analysis: the config has no {name}; choose another --split.')
    check_data_roots(cfg, [name])
    loader = copy.deepcopy(cfg[name].to_dict())
    if split != 'train':
        return loader
    evaluation = cfg.get('val_dataloader') or cfg.get('test_dataloader')
    pipelines = [node['pipeline'] for _, node in named_dicts(evaluation) if node.get('pipeline')]
    if not pipelines:
        raise SetupError(
            'analysis: the config has no val_dataloader or test_dataloader whose pipeline could show the training '
            'images without augmentation; give one, or choose another --split.'
        )
    for _, node in list(named_dicts(loader['dataset'])):
        if 'pipeline' in node:
            node['pipeline'] = copy.deepcopy(list(pipelines[0]))
    loader.update({key: evaluation[key] for key in ('batch_size', 'num_workers') if key in evaluation})
    return loader


def _with_channel_order(pixels: PixelFormat, loader: dict) -> PixelFormat:
    """Fill in the channel order if unknown: BGR with ``LoadImageFromFile``, RGB for images in memory."""
    if pixels.channel_order is not None:
        return pixels
    kinds = [node.get('type') for _, node in named_dicts(loader['dataset'])]
    from_files = any(str(getattr(kind, '__name__', kind)).endswith('LoadImageFromFile') for kind in kinds)
    return replace(pixels, channel_order='bgr' if from_files else 'rgb')


def _build_teacher(cfg: Config, config: str | None, checkpoint: str | None) -> Teacher | None:
    if config is not None:
        return MMPretrainTeacher(config, checkpoint)
    if not is_distilled(cfg):
        if checkpoint is not None:
            raise SetupError('analysis: the config names no teacher; give --teacher-config with --teacher-checkpoint.')
        return None
    named = copy.deepcopy(cfg.model.teacher)
    if checkpoint is not None:
        named['checkpoint'] = checkpoint
    path = named.get('checkpoint')
    if isinstance(path, str) and '://' not in path and not Path(path).is_file():
        if checkpoint is not None:
            raise SetupError(f"analysis: there is no teacher's checkpoint {path}.")
        return None
    teacher = MODELS.build(named)
    # A cached teacher has predictions only for the augmented training images.
    return None if teacher.replay is not None else teacher


def _labels_of(dataset: Any, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = np.empty(len(dataset), dtype=np.int64)
    clean, could_flip = np.empty_like(labels), np.empty(len(labels), dtype=bool)
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        label = info.get('gt_label', math.nan)
        if np.ndim(label) > 0 or not 0 <= label < num_classes:
            raise SetupError(
                f'analysis: image {i} has no label of 0 to {num_classes - 1}, but {info.get("gt_label")!r}; analysis '
                'needs labelled images of one class each.'
            )
        labels[i], clean[i], could_flip[i] = label, info.get('clean_label', label), info.get('could_flip', True)
    return labels, clean, could_flip
