"""Class names of teachers and checkpoints, and their comparison."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import PretrainedCfg

from fnkd_plugin.taxonomy.names import ClassNames, normalised, read_names


class Classes(NamedTuple):
    """K classes in order.

    Attributes:
        names: Their names.
        ids: The WordNet IDs of ImageNet classes, whose names are not unique (two of 1000 are ``'crane'``); else None.
    """

    names: list[str]
    ids: list[str] | None = None

    @classmethod
    def of(cls, classes: ClassNames, owner: str) -> 'Classes':
        """Classes from :func:`read_names`, with WordNet IDs if they are the 1000 of ImageNet in order."""
        names = read_names(classes, owner)
        imagenet = _imagenet('imagenet-1k')
        return cls(names, None if differences(names, imagenet.names) else imagenet.ids)


def name_key(name: str) -> str:
    """Normalise a name for comparison: ignores case, underscores and the number prefix of CUB."""
    return normalised(name).lower()


def differences(a: Sequence[str], b: Sequence[str]) -> list[int]:
    """The indices at which two lists have different classes, including those beyond the shorter list.

    Names are equal if they share a (comma-separated) synonym by :func:`name_key`. A name that shares a synonym with
    another name of its own list is compared exactly.
    """
    if len(a) == len(b) and list(a) == list(b):
        return []
    keys_a, keys_b = ([_synonyms(name) for name in names] for names in (a, b))
    exact = _ambiguous(keys_a) | _ambiguous(keys_b)
    shared = min(len(a), len(b))
    different = [k for k in range(shared) if a[k] != b[k] and (k in exact or not keys_a[k] & keys_b[k])]
    return [*different, *range(shared, max(len(a), len(b)))]


def _synonyms(name: str) -> set[str]:
    return {name_key(part) for part in name.split(',')}


def _ambiguous(keys: Sequence[set[str]]) -> set[int]:
    """The indices of names that share a synonym with another name of the list."""
    indices = defaultdict(list)
    for k, synonyms in enumerate(keys):
        for synonym in synonyms:
            indices[synonym].append(k)
    return {k for shared in indices.values() if len(shared) > 1 for k in shared}


@functools.cache
def _imagenet(subset: str) -> Classes:
    info = ImageNetInfo(subset)
    indices = range(info.num_classes())
    return Classes([info.index_to_description(k) for k in indices], [info.index_to_label_name(k) for k in indices])


def timm_classes(cfg: PretrainedCfg) -> Classes | None:
    """The classes of timm's pretrained weights; None if they are not from ImageNet."""
    subset = infer_imagenet_subset(cfg.to_dict())
    return None if subset is None else _imagenet(subset)


def saved_classes(checkpoint: Mapping[str, Any]) -> Classes | None:
    """The classes that MMEngine or mmcls stored in a checkpoint; None without."""
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    dataset = meta.get('dataset_meta')
    names = (dataset if isinstance(dataset, Mapping) else {}).get('classes') or meta.get('CLASSES')
    return Classes.of(names, 'checkpoint') if names and isinstance(names, (list, tuple)) else None
