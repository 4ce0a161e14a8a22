"""This plugin's models in MMPretrain's ``list_models`` and ``get_model``."""

import functools
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmpretrain.apis.model import Model, ModelHub

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.config import plain_config


class ZooModel(Model):
    """A model of ``model-index.yml``. Its config may be a distilled one, whose student is the published model."""

    @functools.cached_property
    def config(self) -> Config:
        """The student's plain config, read on first access, without pretrained weights and teacher."""
        return plain_config(Config.fromfile(self.data['Config']))

    @property
    def weights(self) -> str:
        """The URL or path of the published weights.

        Raises:
            SetupError: If they are not published.
        """
        if 'Weights' not in self.data:
            raise SetupError(
                f'{self.name}: its weights are not published. Train it with tools/train.py '
                f'{self.data["Config"]}, and give the file: get_model({self.name!r}, pretrained=FILE), of a teacher '
                'checkpoint=FILE or --teacher-checkpoint FILE.'
            )
        return self.data['Weights']


def zoo_root() -> Path:
    """The folder of ``model-index.yml``: ``.mim`` in an installed package, else the checkout's root."""
    package = Path(__file__).resolve().parents[1]
    installed = package / '.mim'
    return installed if installed.is_dir() else package.parent


def register_zoo(root: Path) -> None:
    """Add the models of ``root/model-index.yml``, whose paths are relative to ``root``, to the ``ModelHub``."""
    before = set(ModelHub._models_dict)
    ModelHub.register_model_index(root / 'model-index.yml', config_prefix=root)
    for name in set(ModelHub._models_dict) - before:
        model = ModelHub._models_dict[name]
        model.__class__ = ZooModel
        if 'Weights' in model.data and '://' not in model.data['Weights']:
            model.data['Weights'] = str(root / model.data['Weights'])


def extend_hub() -> None:
    """Make the ``ModelHub`` read this plugin's index when it reads MMPretrain's, on first use."""
    stock = ModelHub._register_mmpretrain_models

    @functools.cache
    def read_ours() -> None:
        register_zoo(zoo_root())

    def read_both() -> Any:
        stock()
        read_ours()

    ModelHub._register_mmpretrain_models = read_both
