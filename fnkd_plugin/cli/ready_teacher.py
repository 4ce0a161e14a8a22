"""A teacher whose checkpoint is of the folder's classes already, which needs no fine-tuning."""

from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

from fnkd_plugin.cli.bundle import Bundle, open_bundle
from fnkd_plugin.cli.recipe import Recipe
from fnkd_plugin.cli.terminal import progress
from fnkd_plugin.errors import SetupError
from fnkd_plugin.teachers.class_names import Classes, name_key, saved_classes
from fnkd_plugin.teachers.pixels import format_of_preprocessor
from fnkd_plugin.teachers.timm_models import checkpoint_classes
from fnkd_plugin.weights import find_state_dict, read_checkpoint


def teacher_config(model: str, checkpoint: Path, size: int) -> dict[str, Any]:
    """A timm teacher that runs in the student's memory format, and gets its images enlarged to ``size`` pixels."""
    return dict(
        type='TimmTeacher',
        model=model,
        checkpoint=str(checkpoint.absolute()),
        input_size=size,
        interpolation='bicubic',
        execution=dict(channels_last=True),
    )


def ready_teacher(model: str, checkpoint: str, classes: list[str], size: int) -> dict[str, Any] | None:
    """The config of a teacher that knows all ``classes``; None if its checkpoint is of others.

    The checkpoint's class names decide. Without names, one of as many classes is taken for the folder's, in the order
    of their names.

    Args:
        model: timm's name.
        checkpoint: A ``.safetensors`` file that ``fnkd train`` wrote, or weights as saved by timm, MMEngine or torch.
        classes: Names of the folder's classes.
        size: Pixels a side that the teacher gets images at, if no file beside the checkpoint says which it needs.
    """
    bundle = _bundle(checkpoint)
    config = teacher_config(model, Path(checkpoint), bundle.image_size if bundle else size)
    content = read_checkpoint(checkpoint)
    saved = saved_classes(content)
    names = bundle.classes if bundle else saved.names if saved else None
    if names is None:
        count = checkpoint_classes(find_state_dict(content, checkpoint), timm.get_pretrained_cfg(model))
        return config if count == len(classes) else None
    if not {name_key(name) for name in classes} <= {name_key(name) for name in names}:
        return None
    return dict(config, classes=names, class_map='by-name')


def _bundle(checkpoint: str) -> Bundle | None:
    path = Path(checkpoint)
    return open_bundle(path)[0] if path.with_suffix('.json').is_file() and path.suffix == '.safetensors' else None


@torch.no_grad()
def accuracy_of(config: dict[str, Any], recipe: Recipe) -> float:
    """A teacher's accuracy on the validation photos as the student sees them, in per cent.

    Raises:
        SetupError: If its accuracy is at or below chance level.
    """
    cfg = recipe.config(config['model'], config['checkpoint'])
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    teacher = MODELS.build(config)
    preprocessor = MODELS.build(dict(cfg.data_preprocessor, type='ClsDataPreprocessor')).to(device)
    teacher.match_classes(len(recipe.photos.classes), Classes.of(recipe.photos.classes, 'training set'))
    teacher.prepare(format_of_preprocessor(preprocessor))
    loader = Runner.build_dataloader(cfg.val_dataloader)
    right = 0
    for batch in progress('evaluating the teacher', loader, len(loader)):
        data = preprocessor(batch, False)
        found = teacher.predict(data['inputs']).logits.argmax(1)
        right += sum(int(k) == int(s.gt_label) for k, s in zip(found, data['data_samples'], strict=True))
    accuracy = 100 * right / len(recipe.photos.val)
    chance = 100 / len(recipe.photos.classes)
    if accuracy <= chance:
        raise SetupError(
            f'{config["checkpoint"]}: the teacher is right on {accuracy:.1f} % of the validation photos, no better '
            f'than chance ({chance:.1f} %): its classes are not those of the folder in the order of their names.'
        )
    return accuracy
