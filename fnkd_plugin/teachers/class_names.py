"""What classes are called, and where a teacher's or a data set's names are written down."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import PretrainedCfg

from fnkd_plugin.taxonomy.names import ClassNames, normalised, read_names


class Classes(NamedTuple):
    """K classes in their order.

    Attributes:
        names: Their names.
        ids: Their WordNet IDs, by which ImageNet's classes are told apart (two of 1000 are called ``'crane'``);
            None for other classes.
    """

    names: list[str]
    ids: list[str] | None = None

    @classmethod
    def of(cls, classes: ClassNames, owner: str) -> 'Classes':
        """What :func:`read_names` finds, with WordNet IDs if it is ImageNet's 1000 classes in their order."""
        names = read_names(classes, owner)
        imagenet = _imagenet('imagenet-1k')
        if len(names) == len(imagenet.names) and all(map(same_class, names, imagenet.names)):
            return cls(names, imagenet.ids)
        return cls(names)


def same_class(a: str, b: str) -> bool:
    """Whether two names mean one class: they share a synonym, as parted by commas, whatever the case."""
    return bool(_synonyms(a) & _synonyms(b))


def _synonyms(name: str) -> set[str]:
    return {normalised(part).lower() for part in name.split(',')}


@functools.cache
def _imagenet(subset: str) -> Classes:
    info = ImageNetInfo(subset)
    indices = range(info.num_classes())
    return Classes([info.index_to_description(k) for k in indices], [info.index_to_label_name(k) for k in indices])


def timm_classes(cfg: PretrainedCfg) -> Classes | None:
    """The ImageNet classes of timm's own weights of a model, if they are of ImageNet."""
    subset = infer_imagenet_subset(cfg.to_dict())
    return None if subset is None else _imagenet(subset)


def saved_classes(checkpoint: Mapping[str, Any]) -> Classes | None:
    """Those that MMEngine or mmcls wrote into a checkpoint."""
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    dataset = meta.get('dataset_meta')
    names = (dataset if isinstance(dataset, Mapping) else {}).get('classes') or meta.get('CLASSES')
    return Classes.of(names, 'checkpoint') if names and isinstance(names, (list, tuple)) else None
