"""MMPretrain models as teachers."""

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.apis import ModelHub
from mmpretrain.registry import MODELS

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.checkpoints import read_checkpoint
from fnkd_plugin.mm.config import dataset_classes, dicts_in, load_config, plain_model, without_pretrained
from fnkd_plugin.mm.tasks import check_single_label, forward_to_logits
from fnkd_plugin.readers import only_size
from fnkd_plugin.teachers.class_names import Classes, saved_classes
from fnkd_plugin.teachers.pixels import format_of_preprocessor
from fnkd_plugin.teachers.teacher import ModelTeacher
from fnkd_plugin.weights import find_state_dict, load_weights


@MODELS.register_module()
class MMPretrainTeacher(ModelTeacher):
    """A trained MMPretrain classifier, with the normalisation of its own data preprocessor.

    A config file is Python code and is executed. Of a distilled config the student is used.

    Args:
        config: A config file, one inside MMPretrain (``mmpretrain::FOLDER/FILE.py``), a :class:`Config`, or a name of
            MMPretrain's model zoo.
        checkpoint: Its weights, a path or URL; None for the zoo's own.
        **options: See :class:`~fnkd_plugin.teachers.options.TeacherOptions`. ``mean``, ``std`` and ``channel_order``
            are needed if the student's data preprocessor defines them and this one's does not (``to_rgb=False`` leaves
            the order to the loader). Interpolation is that of the test pipeline, or bicubic if it has none (our
            choice).

    Raises:
        SetupError: If the config or name does not exist, weights are missing or do not fit, or the model is not a
            single-label classifier.
    """

    def __init__(self, config: str | Path | Config, checkpoint: str | Path | None = None, **options: Any) -> None:
        name = f'MMPretrainTeacher({config if isinstance(config, (str, Path)) else "Config"})'
        cfg, checkpoint = _find_config(name, config, checkpoint)
        if checkpoint is None:
            raise SetupError(f'{name}: a teacher needs trained weights; give checkpoint=FILE.')
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(without_pretrained(plain_model(cfg)))
        check_single_label(f'{name}: the teacher', model)
        content = read_checkpoint(checkpoint)
        load_weights(model, find_state_dict(content, checkpoint), f'{name} and {checkpoint}')
        of_data = None if options.get('classes') else dataset_classes(cfg)
        classes = saved_classes(content) or (Classes.of(of_data, name) if of_data else None)
        forward = forward_to_logits(model)
        size = None if options.get('input_size') else only_size(model.eval(), forward)
        pixels = format_of_preprocessor(model.data_preprocessor)
        super().__init__(model, forward, pixels, name, size, _interpolation(cfg), classes, **options)


def _interpolation(cfg: Config) -> str:
    nodes = dicts_in((cfg.get('test_dataloader') or {}).get('dataset'))
    # The default of MMCV's and MMPretrain's transforms is bilinear.
    stated = [node.get('interpolation', 'bilinear') for node in nodes if 'Resize' in str(node.get('type'))]
    return stated[-1] if stated else 'bicubic'


def _find_config(
    name: str, config: str | Path | Config, checkpoint: str | Path | None
) -> tuple[Config, str | Path | None]:
    if isinstance(config, Config):
        return config, checkpoint
    if str(config).endswith('.py'):
        return load_config(config, owner=f'{name}: '), checkpoint
    try:
        metainfo = ModelHub.get(str(config))
    except ValueError as error:
        raise SetupError(f'{name}: neither a config file (*.py) nor a name of the model zoo. {error}') from error
    return metainfo.config, checkpoint or metainfo.weights
