"""Runs that depend on their seed alone, also when they are cut off and resumed."""

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from fnkd_plugin.engine.seeded_dataset import derive_seed, make_seeded, seed_all

_DATA, _STEP = 0, 1


@HOOKS.register_module()
class ReproducibleHook(Hook):
    """Derives all randomness of training from (seed, epoch, sample) and (seed, rank, iteration).

    MMEngine's resuming restores no random state, and its workers repeat or go on with theirs depending on
    ``persistent_workers``. With this hook a run that was killed and resumed ends with the same weights as one
    that was not, for any number of workers, and plain and distilled runs see the same batches. The seed is
    ``randomness.seed``, or the one MMEngine drew, which a resumed run takes from the checkpoint. Put the hook
    into ``default_hooks``, whose entries merge.
    """

    # Before every hook that may draw, and right after the batch is loaded, whose workers are seeded apart.
    priority = 'VERY_HIGH'

    def before_train(self, runner: Any) -> None:
        """Seed the sampler's order and each sample's augmentations."""
        loader = runner.train_dataloader
        sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
        if hasattr(sampler, 'seed'):
            # The sampler was built before a checkpoint told the seed.
            sampler.seed = runner.seed
        make_seeded(loader.dataset, sampler, derive_seed(runner.seed, _DATA))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed mixup, dropout and whatever else draws in the main process."""
        seed_all(derive_seed(runner.seed, _STEP, get_rank(), runner.iter))
