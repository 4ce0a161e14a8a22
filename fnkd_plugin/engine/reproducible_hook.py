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
        seed = _common_seed(runner)
        if hasattr(sampler, 'seed') and not _has_own_seed(runner):
            # The sampler was built before a checkpoint told the seed.
            sampler.seed = seed
        make_seeded(loader.dataset, sampler, derive_seed(seed, _DATA))
        if hasattr(runner.train_loop, 'dataloader_iterator'):
            # Upstream's loop by iterations has started its workers already, with the data set as it was.
            loader._iterator = None
            runner.train_loop.dataloader_iterator = type(runner.train_loop.dataloader_iterator)(loader)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed mixup, dropout and whatever else draws in the main process."""
        seed_all(derive_seed(_common_seed(runner), _STEP, get_rank(), runner.iter))


def _common_seed(runner: Any) -> int:
    # With diff_rank_seed MMEngine adds the rank to each process's, which would shuffle their shards apart.
    return runner.seed - (get_rank() if runner._randomness_cfg.get('diff_rank_seed') else 0)


def _has_own_seed(runner: Any) -> bool:
    sampler = (runner.cfg.get('train_dataloader') or {}).get('sampler')
    return isinstance(sampler, dict) and sampler.get('seed') is not None
