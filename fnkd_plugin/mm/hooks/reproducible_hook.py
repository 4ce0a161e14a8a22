"""Runs that depend on their seed alone, also when interrupted and resumed."""

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmpretrain.registry import HOOKS

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.distiller import Distiller
from fnkd_plugin.mm.replay.batch_augments import replay_mixing
from fnkd_plugin.mm.replay.description import TRAINING_IMAGES, images_key, warn_if_trained_on
from fnkd_plugin.mm.replay.fixed_batches import fix_batches
from fnkd_plugin.mm.replay.seeded_dataset import Replay, data_seed, number_views, seed_all, seed_samples, step_seed
from fnkd_plugin.mm.replay.switches import refuse_switches


@HOOKS.register_module()
class ReproducibleHook(Hook):
    """Derives all randomness of training from (seed, epoch, sample) and (seed, rank, iteration).

    MMEngine restores no random state when it resumes, and its workers repeat or continue theirs depending on
    ``persistent_workers``. With this hook a run that was killed and resumed ends with the same weights as one that was
    not, for any number of workers, and plain and distilled runs see the same batches. The seed is ``randomness.seed``,
    or the one that MMEngine drew, which a resumed run takes from the checkpoint. Put the hook into ``default_hooks``,
    whose entries merge.

    Args:
        replay: Repeat these views of each image instead: ``dict(seed=0, views=2)``. With ``batch_size=32``, which must
            be the data loader's, batches and their mixtures are repeated, too. A ``CachedTeacher`` brings its own; give
            it to runs that are to be compared with one.

    Raises:
        SetupError: Before training, if a ``CachedTeacher`` has no predictions for the images.
    """

    # Before every hook that may draw, and right after the batch is loaded, whose workers are seeded apart.
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
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
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
            # Upstream's loop by iterations has started its workers already, with the data set as it was.
            loader._iterator = None
            runner.train_loop.dataloader_iterator = type(runner.train_loop.dataloader_iterator)(loader)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Store which crops the model was trained on, for runs in which it is the teacher."""
        checkpoint['meta'][TRAINING_IMAGES] = self._images

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed mixup, dropout and all else that draws in the main process."""
        seed_all(step_seed(_common_seed(runner), get_rank(), runner.iter))

    def _replay_with(self, model: Any) -> Replay | None:
        known = model.distillation.teacher.replay if isinstance(model, Distiller) else None
        if known and self._replay and known != self._replay:
            raise SetupError(
                f'ReproducibleHook: replay is {self._replay}, but the CachedTeacher has {known}; leave replay out.'
            )
        return known or self._replay


def _seed_batches(loader: Any, sampler: Any, model: Any, seed: int, replay: Replay | None) -> None:
    """Seed the samples, and if batches are repeated, their order and mixing."""
    seed_samples(loader.dataset, seed, stamps=replay is not None)
    if replay and replay.batch_size:
        fix_batches(loader, seed, replay.views, replay.batch_size)
        replay_mixing(model.data_preprocessor, seed)
    else:
        number_views(sampler, replay and replay.views)
        replay_mixing(model.data_preprocessor, None)


def _common_seed(runner: Any) -> int:
    # With diff_rank_seed MMEngine adds the rank to each process's, which would shuffle their shards apart.
    return runner.seed - (get_rank() if runner._randomness_cfg.get('diff_rank_seed') else 0)


def _has_own_seed(runner: Any) -> bool:
    sampler = (runner.cfg.get('train_dataloader') or {}).get('sampler')
    return isinstance(sampler, dict) and sampler.get('seed') is not None
