"""MMPretrain models as teachers."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.apis import ModelHub
from mmpretrain.registry import MODELS

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.checkpoints import find_state_dict, load_weights, read_checkpoint
from fnkd_plugin.mm.config import dataset_classes, dicts_in, load_config, plain_model, without_pretrained
from fnkd_plugin.mm.tasks import check_single_label, forward_to_logits
from fnkd_plugin.readers import ImageSize, only_size
from fnkd_plugin.taxonomy.names import ClassNames
from fnkd_plugin.teachers.class_map import ClassMapping
from fnkd_plugin.teachers.class_names import Classes, saved_classes
from fnkd_plugin.teachers.execution import ExecutionOptions
from fnkd_plugin.teachers.pixels import format_of_preprocessor
from fnkd_plugin.teachers.teacher import ModelTeacher


@MODELS.register_module()
class MMPretrainTeacher(ModelTeacher):
    """A trained MMPretrain classifier as a frozen teacher, with its own data preprocessor's normalisation.

    A config file is Python and runs when read: give only files you trust. A distilled config gives its student.

    Args:
        config: A config file, one that MMPretrain ships (``mmpretrain::FOLDER/FILE.py``), a :class:`Config`, or a name
            of its model zoo.
        checkpoint: Its weights, a path or URL; for a zoo name the zoo's own if None.
        mean: Per channel on the 0 to 255 scale, needed where the data preprocessor has none and the student's has.
        std: As ``mean``.
        channel_order: ``'rgb'`` or ``'bgr'``, needed where the data preprocessor has ``to_rgb=False`` (so
            that the order depends on the loader) and the student's differs.
        input_size: Resize images to this height and width if they differ. By default only models of one size do
            (MLP-Mixer), to theirs.
        interpolation: How it resizes them (``'bilinear'``, ``'bicubic'``, ...); that of the config's test pipeline if
            None, and bicubic if that resizes nothing (our choice).
        execution: How it is run, see :class:`~fnkd_plugin.teachers.execution.Execution`: ``'auto'``, or
            ``dict(dtype='bfloat16', channels_last=True, compile=True)`` or some of these.
        class_map: Which of its classes the student's are: for each of the student's its index or name here; a text
            file of such, one a line; or ``'by-name'``.
        classes: The names of its classes (a list, a text file, a data set of MMPretrain), where neither
            checkpoint nor config holds them.

    Raises:
        SetupError: If there is no such config or name, no weights, weights that do not fit, or if the model is no
            single-label classifier.
    """

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channel_order: str | None = None,
        input_size: ImageSize | None = None,
        interpolation: str | None = None,
        execution: ExecutionOptions = None,
        class_map: ClassMapping | None = None,
        classes: ClassNames | None = None,
    ) -> None:
        name = f'MMPretrainTeacher({config if isinstance(config, (str, Path)) else "Config"})'
        cfg, checkpoint = _find_config(name, config, checkpoint)
        if checkpoint is None:
            raise SetupError(f'{name}: a teacher needs trained weights; give checkpoint=FILE.')
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(without_pretrained(plain_model(cfg)))
        check_single_label(f'{name}: the teacher', model)
        content = read_checkpoint(checkpoint)
        load_weights(model, find_state_dict(content, checkpoint), f'{name} and {checkpoint}')
        pixels = format_of_preprocessor(model.data_preprocessor).restated(name, mean, std, channel_order)
        of_data = dataset_classes(cfg) if classes is None else None
        found = saved_classes(content) or (Classes.of(of_data, name) if of_data else None)
        interpolation = interpolation or _interpolation(cfg)
        forward = forward_to_logits(model)
        input_size = input_size or only_size(model.eval(), forward)
        super().__init__(model, forward, pixels, name, input_size, execution, class_map, classes, found, interpolation)


def _interpolation(cfg: Config) -> str:
    nodes = dicts_in((cfg.get('test_dataloader') or {}).get('dataset'))
    # MMCV's and MMPretrain's transforms are bilinear where nothing is said.
    stated = [node.get('interpolation', 'bilinear') for node in nodes if 'Resize' in str(node.get('type'))]
    return stated[-1] if stated else 'bicubic'


def _find_config(
    name: str, config: str | Path | Config, checkpoint: str | Path | None
) -> tuple[Config, str | Path | None]:
    if isinstance(config, Config):
        return config, checkpoint
    if str(config).endswith('.py'):
        return load_config(config, f'{name}: '), checkpoint
    try:
        metainfo = ModelHub.get(str(config))
    except ValueError as error:
        raise SetupError(f'{name}: no config file (*.py) and no name of the model zoo. {error}') from error
    return metainfo.config, checkpoint or metainfo.weights
