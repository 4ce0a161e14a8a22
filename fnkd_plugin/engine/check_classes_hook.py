"""Labels softened by class names must be those of the data."""

from typing import Any

from mmengine.hooks import Hook
from torch import nn

from fnkd_plugin.losses.alsr_loss import label_tables


def check_class_counts(model: nn.Module) -> None:
    """Refuse a label table of another number of classes than its classifier says it has.

    Raises:
        SetupError: With both numbers.
    """
    for owner, loss in label_tables(model):
        count = getattr(owner, 'num_classes', None) or getattr(getattr(owner, 'model', None), 'num_classes', None)
        if count is not None:
            loss.check_class_count(count, type(owner).__name__)


class CheckClassesHook(Hook):
    """Refuses to train ``ALSRLoss`` on a data set with other classes than its groups', or in another order.

    Not registered: :func:`fnkd_plugin.engine.training.build_runner` adds it to every run.
    """

    def before_train(self, runner: Any) -> None:
        """Compare both, before the first step.

        Raises:
            SetupError: With the first names that differ and their positions.
        """
        dataset = runner.train_dataloader.dataset
        names = (getattr(dataset, 'metainfo', None) or {}).get('classes')
        for _, loss in label_tables(runner.model):
            if names:
                loss.check_classes(names, type(dataset).__name__)
