"""Teacher that reads cached logits."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import default_collate
from mmengine.logging import print_log
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from fnkd_plugin.cache.fingerprint import describe_data, describe_software, describe_weights, differences
from fnkd_plugin.cache.rows import predict_rows, samples_of
from fnkd_plugin.cache.store import Store, row_type
from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.mm.replay.batch_augments import check_mixing, describe_mixing
from fnkd_plugin.mm.replay.seeded_dataset import Replay, SampleIndex
from fnkd_plugin.prediction import Prediction, SparsePrediction
from fnkd_plugin.rng import isolated_rng
from fnkd_plugin.taxonomy.names import ClassNames
from fnkd_plugin.teachers.class_map import ClassMap, ClassMapping
from fnkd_plugin.teachers.class_names import Classes
from fnkd_plugin.teachers.pixels import PixelFormat
from fnkd_plugin.teachers.teacher import ModelTeacher, Teacher

VERIFY_TOLERANCE = 2e-3
"""Allowed difference from the live teacher, relative to the largest value; fp16 rounds by 5e-4."""


@MODELS.register_module()
class CachedTeacher(Teacher):
    """Teacher that reads the logits stored by ``tools/cache_teacher.py`` for each view of each training image.

    Training repeats those views: epoch e has the augmentations of view ``e % views``, whatever the seed of the run.
    Before the first step, data and pipeline are compared with the cache's; in each step, the checksums of the images.
    Any soft loss can be used. If images are mixed (Mixup, CutMix), the cache's batches and mixing are repeated, too,
    for any number of processes.

    Args:
        path: The folder of the cache.
        verify: Number of images whose rows are compared with the live teacher before training; for mixed images,
            rounded up to whole batches.
        live: The config of that teacher, with which the cache was made. The copy in the cache is not used, since a
            teacher's config can run code.
        class_map: For each class of the student, its index or name among the teacher's classes; a text file of these,
            one per line; or ``'by-name'``.
        classes: Names of the teacher's classes (a list, a text file, a data set of MMPretrain), if the cache has none.

    Raises:
        SetupError: If the cache does not exist, is incomplete or damaged, its classes do not fit, or ``verify`` lacks
            ``live``.
    """

    def __init__(
        self,
        path: str | Path,
        verify: int = 0,
        live: dict[str, Any] | None = None,
        class_map: ClassMapping | None = None,
        classes: ClassNames | None = None,
    ) -> None:
        self._store = store = Store(path)
        left = sum(end - start for _, start, end in store.pending())
        if left:
            raise SetupError(
                f'CachedTeacher: {path} lacks {left} of {store.views * store.samples} views of images; run '
                'tools/cache_teacher.py again with the same arguments.'
            )
        teacher = store.manifest['teacher']
        self.name = f'CachedTeacher({teacher["name"]})'
        self.has_feature_norm = teacher['feature_norm']
        self.top_k = store.manifest['top_k']
        self.replay = Replay(store.manifest['seed'], store.views, store.batch_size)
        if self.top_k and class_map is not None:
            raise SetupError(
                f'{self.name}: class_map: the cache keeps the {self.top_k} largest of {teacher["num_classes"]} logits, '
                'which may be of other classes; make it without --top-k.'
            )
        if verify and live is None:
            raise SetupError(
                f'{self.name}: verify={verify} needs the live teacher; give its config, live=dict(type=...), as the '
                'cache was made with.'
            )
        self._verify, self._live = verify, live
        self._origin = None if store.origin is None else torch.from_numpy(store.origin)
        stored = Classes(teacher['classes'], teacher['class_ids']) if teacher['classes'] else None
        known = stored if classes is None else Classes.of(classes, self.name)
        self.class_map = ClassMap(self.name, teacher['num_classes'], known, class_map)

    def prepare(self, source: PixelFormat) -> None:
        """See :meth:`Teacher.prepare`; kept for :meth:`check`."""
        self._source = source

    def check(self, dataset: Any, preprocessor: nn.Module) -> None:
        """See :meth:`Teacher.check`."""
        check_mixing(self.replay, preprocessor)
        mixing = describe_mixing(preprocessor, self.replay.data_seed, self.replay.batch_size or 1)
        found = dict(data=describe_data(dataset), mixing=mixing)
        different = differences({key: self._store.manifest[key] for key in found}, found)
        if different:
            raise SetupError(
                f'{self.name}: the training images are not those of {self._store.folder}: {first_few(different)}; use '
                'the data, pipeline and batch augmentations of its config, or make a cache with this one.'
            )
        software = self._other_software()
        if software:
            print_log(
                f'{self.name}: the cache was made with other software ({software}); training stops if that changes an '
                'image.',
                logger='current',
            )
        if self._verify:
            with isolated_rng():
                self._compare_with_live(dataset, preprocessor)

    @torch.compiler.disable
    def predict(self, images: Tensor, data_samples: Sequence[Any] | None = None) -> Prediction:
        """See :meth:`Teacher.predict`; rows are found by the stamps of the samples."""
        rows = self._rows(images, data_samples or ())
        device = images.device
        # Converted to fp32 on the device.
        logits, norm = _tensor(rows['logits'], device).float(), _tensor(rows['norm'], device)
        if self._origin is not None and self._origin.device != device:
            self._origin = self._origin.to(device)
        prediction = Prediction(logits, norm, self._origin) if self.has_feature_norm else Prediction(logits)
        if self.top_k is None:
            return self.class_map.restrict(prediction)
        classes = _tensor(rows['classes'].astype('i8'), device)
        return SparsePrediction.of(prediction, classes, _tensor(rows['tail'], device), self.num_classes)

    def _compare_with_live(self, dataset: Any, preprocessor: nn.Module) -> None:
        teacher = self._store.manifest['teacher']
        config = {key: value for key, value in dict(self._live or {}).items() if key != 'class_map'}
        live = MODELS.build(config)
        if not isinstance(live, ModelTeacher):
            raise SetupError(f'{self.name}: verify: {type(live).__name__} is not a teacher that can be cached.')
        if describe_weights(live.model) != teacher['weights']:
            raise SetupError(f'{self.name}: verify: the weights of {live.name} differ from those that were cached.')
        live.prepare(self._source)
        kind = row_type(teacher['num_classes'], 'float32', self.top_k)
        for samples in self._to_verify():
            batch = default_collate([dataset[sample] for sample in samples])
            of_live, images = predict_rows(live, preprocessor, batch, kind)
            of_cache = self._rows(images, batch['data_samples'])
            for name in ('logits', 'norm'):
                expected = of_live[name].astype('f4')
                error = np.nanmax(np.abs(expected - of_cache[name]), initial=0)
                largest = np.nanmax(np.abs(expected), initial=1)
                if error > VERIFY_TOLERANCE * largest:
                    raise SetupError(
                        f'{self.name}: verify: {name} differ by up to {error:g} from the live teacher (of magnitude '
                        f'{largest:g}); make the cache again.'
                    )

    def _to_verify(self) -> Iterator[list[SampleIndex]]:
        """Batches spread over the whole cache, of one image each unless images are mixed."""
        store, size = self._store, self._store.batch_size or 1
        per_view = -(-store.samples // size)
        for place in np.linspace(0, store.views * per_view - 1, -(-self._verify // size)).astype(int).tolist():
            view, batch = divmod(place, per_view)
            end = min((batch + 1) * size, store.samples)
            yield samples_of(self.replay, store.samples, view, batch * size, end)

    def _rows(self, images: Tensor, data_samples: Sequence[Any]) -> np.ndarray:
        """The rows of these images, by the stamps of their samples."""
        stamps = [getattr(sample, 'stamp', None) for sample in data_samples]
        if len(stamps) != len(images) or None in stamps:
            raise SetupError(
                f'{self.name}: it has predictions of training images replayed by ReproducibleHook only; add '
                "default_hooks=dict(reproducible=dict(type='ReproducibleHook')), as tools/train.py does. It cannot be "
                'evaluated.'
            )
        views, indices, pixels, batches = np.array(stamps, dtype=np.int64).T
        if self._store.batch_size is not None:
            indices = self._places_in_batch(views, batches)
            if not getattr(data_samples[0], 'mixed', False):
                raise RuntimeError(
                    f'{self.name}: the images of this batch have not been mixed as the teacher saw them; a hook has '
                    "changed the data preprocessor's batch_augments."
                )
        rows = self._store.lookup(views, indices)
        self._check_images(images, rows['pixels'] != pixels, data_samples)
        return rows

    def _places_in_batch(self, views: np.ndarray, batches: np.ndarray) -> np.ndarray:
        size = self._store.batch_size or 1
        start = int(batches[0]) * size
        places = np.arange(start, min(start + size, self._store.samples))
        if len(places) != len(views) or len({*zip(views.tolist(), batches.tolist(), strict=True)}) > 1:
            raise RuntimeError(
                f'{self.name}: the {len(views)} images of this batch are not the {len(places)} of batch {batches[0]} '
                f'of view {views[0]}, which the teacher saw mixed with each other; batches are changed between the '
                'sampler and the model.'
            )
        return places

    def _check_images(self, images: Tensor, other: np.ndarray, data_samples: Any) -> None:
        shape = list(images.shape[1:])
        if shape != self._store.manifest['image']:
            raise SetupError(
                f"{self.name}: the student's images are {shape} after its data preprocessor, those of the cache "
                f'{self._store.manifest["image"]}; pad as in the config of the cache.'
            )
        if other.any():
            names = [data_samples[i].get('img_path') or data_samples[i].stamp.sample for i in np.flatnonzero(other)]
            software = self._other_software() or 'the same versions of all software'
            raise RuntimeError(
                f'{self.name}: {len(names)} of {len(other)} images are not those that the teacher saw '
                f'({first_few(names)}). Something random in the pipeline is not seeded, a file has changed, or '
                f'versions differ ({software}).'
            )

    def _other_software(self) -> str:
        return ', '.join(differences(self._store.manifest['software'], describe_software()))


def _tensor(column: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(column))
    # From pinned memory, so that the host does not wait for the device.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else tensor.to(device)
