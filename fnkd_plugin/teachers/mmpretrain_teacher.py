"""MMPretrain models as teachers."""

import functools
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.apis import ModelHub
from mmpretrain.registry import MODELS

from fnkd_plugin.checkpoints import load_weights, read_state_dict
from fnkd_plugin.config import plain_model, without_pretrained
from fnkd_plugin.errors import SetupError
from fnkd_plugin.tasks import check_single_label
from fnkd_plugin.teachers.pixels import format_of_preprocessor
from fnkd_plugin.teachers.teacher import ModelTeacher


@MODELS.register_module()
class MMPretrainTeacher(ModelTeacher):
    """A trained MMPretrain classifier as a frozen teacher, with its own data preprocessor's normalisation.

    A config file is Python and runs when read: give only files you trust. A distilled config gives its student.

    Args:
        config: A config file, a :class:`Config`, or a name of MMPretrain's model zoo.
        checkpoint: Its weights, a path or URL; for a zoo name the zoo's own if None.
        mean: Per channel on the 0 to 255 scale, needed where the data preprocessor has none and the student's has.
        std: As ``mean``.
        channel_order: ``'rgb'`` or ``'bgr'``, needed where the data preprocessor has ``to_rgb=False`` (so
            that the order depends on the loader) and the student's differs.
        input_size: Resize images to this height and width if they differ.
        channels_last: Run in channels-last memory order (faster convolutions; other rounding).

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
        input_size: int | None = None,
        channels_last: bool = False,
    ) -> None:
        name = f'MMPretrainTeacher({config if isinstance(config, (str, Path)) else "Config"})'
        cfg, zoo_weights = _find_config(name, config)
        checkpoint = checkpoint or zoo_weights
        if checkpoint is None:
            raise SetupError(f'{name}: a teacher needs trained weights; give checkpoint=FILE.')
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(without_pretrained(plain_model(cfg)))
        check_single_label(f'{name}: the teacher', model)
        load_weights(model, read_state_dict(checkpoint), f'{name} and {checkpoint}')
        pixels = format_of_preprocessor(model.data_preprocessor).restated(name, mean, std, channel_order)
        super().__init__(model, functools.partial(model, mode='tensor'), pixels, name, input_size, channels_last)


def _find_config(name: str, config: str | Path | Config) -> tuple[Config, str | None]:
    if isinstance(config, Config):
        return config, None
    if str(config).endswith('.py'):
        if not Path(config).is_file():
            raise SetupError(f'{name}: there is no such config file.')
        return Config.fromfile(config), None
    try:
        metainfo = ModelHub.get(str(config))
    except ValueError as error:
        raise SetupError(f'{name}: no config file (*.py) and no name of the model zoo. {error}') from error
    return metainfo.config, metainfo.weights
