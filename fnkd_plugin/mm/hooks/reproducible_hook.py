"""Reproducible runs, also when interrupted and resumed."""

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.distiller import Distiller
from fnkd_plugin.mm.replay.batch_augments import replay_mixing
from fnkd_plugin.mm.replay.description import TRAINING_IMAGES, images_key, warn_if_trained_on
from fnkd_plugin.mm.replay.fixed_batches import fix_batches
from fnkd_plugin.mm.replay.seeded_dataset import Replay, data_seed, number_views, seed_all, seed_samples, step_seed
from fnkd_plugin.mm.replay.switches import refuse_switches
from fnkd_plugin.mm.tasks import unwrapped


@HOOKS.register_module()
class ReproducibleHook(Hook):
    """Derives all randomness of training from (seed, epoch, sample) and (seed, rank, iteration).

    MMEngine does not restore random states when it resumes, and workers restart or continue theirs depending on
    ``persistent_workers``. With this hook a run that was killed and resumed ends with the same weights as an
    uninterrupted one, for any number of workers, and plain and distilled runs train on the same batches. The seed is
    ``randomness.seed``, or the one that MMEngine drew, which a resumed run takes from the checkpoint. Put the hook into
    ``default_hooks``, whose entries merge.

    Args:
        replay: Repeat these views of each image instead: ``dict(seed=0, views=2)``. With ``batch_size=32``, which must
            be the data loader's, batches and their mixing are repeated, too. A ``CachedTeacher`` sets this itself; pass
            it to runs to be compared with a cached one.

    Raises:
        SetupError: Before training, if a ``CachedTeacher`` has no predictions for the images.
    """

    # Before every hook that may draw random numbers, and after the batch is loaded, which seeds itself.
    priority = 'VERY_HIGH'

    def __init__(self, replay: dict | None = None) -> None:
        self._replay = None if replay is None else Replay(**replay)

    def before_train(self, runner: Any) -> None:
        """Seed the sampler's order and each sample's augmentations."""
        loader = runner.train_dataloader
        sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
        seed = _common_seed(runner)
        if hasattr(sampler, 'seed') and not _has_own_seed(runner):
            # The sampler was built before the seed was read from a checkpoint.
            sampler.seed = seed
        model = unwrapped(runner.model)
        replay = self._replay_with(model)
        data = replay.data_seed if replay else data_seed(seed)
        self._images = images_key(loader.dataset, data)
        _seed_batches(loader, sampler, model, data, replay)
        warn_if_trained_on(runner.cfg.get('model', {}).get('teacher'), self._images)
        teacher = model.distillation.teacher if isinstance(model, Distiller) else None
        mixed = replay is not None and replay.batch_size is not None
        if mixed or (teacher and teacher.replay):
            refuse_switches(runner.hooks, mixed)
        if teacher and teacher.replay:
            teacher.check(loader.dataset, model.data_preprocessor)
        if hasattr(runner.train_loop, 'dataloader_iterator'):
            # Upstream's iteration-based loop has already started its workers, with the unseeded data set.
            loader._iterator = None
            runner.train_loop.dataloader_iterator = type(runner.train_loop.dataloader_iterator)(loader)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Store a key of the training crops, for runs in which this model is the teacher."""
        checkpoint['meta'][TRAINING_IMAGES] = self._images

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed mixup, dropout and other random operations of the main process."""
        seed_all(step_seed(_common_seed(runner), get_rank(), runner.iter))

    def _replay_with(self, model: Any) -> Replay | None:
        known = model.distillation.teacher.replay if isinstance(model, Distiller) else None
        if known and self._replay and known != self._replay:
            raise SetupError(
                f'ReproducibleHook: replay is {self._replay}, but the CachedTeacher has {known}; leave replay out.'
            )
        return known or self._replay


def _seed_batches(loader: Any, sampler: Any, model: Any, seed: int, replay: Replay | None) -> None:
    """Seed the samples and, if batches are repeated, their order and mixing."""
    seed_samples(loader.dataset, seed, stamps=replay is not None)
    if replay and replay.batch_size:
        fix_batches(loader, seed, replay.views, replay.batch_size)
        replay_mixing(model.data_preprocessor, seed)
    else:
        number_views(sampler, replay and replay.views)
        replay_mixing(model.data_preprocessor, None)


def _common_seed(runner: Any) -> int:
    # With diff_rank_seed MMEngine adds the rank, which would give each process another order.
    return runner.seed - (get_rank() if runner._randomness_cfg.get('diff_rank_seed') else 0)


def _has_own_seed(runner: Any) -> bool:
    sampler = (runner.cfg.get('train_dataloader') or {}).get('sampler')
    return isinstance(sampler, dict) and sampler.get('seed') is not None
