"""Predictions for all validation or test images, saved to a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import collect_results, is_main_process
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS


@HOOKS.register_module()
class SavePredictionsHook(Hook):
    """Writes ``predictions.npz`` into the work dir after each evaluation, replacing the previous one.

    It contains ``scores``, the class probabilities [N, K] in fp32, and ``labels`` [N], in the order of the data set.
    """

    file_name = 'predictions.npz'

    def __init__(self) -> None:
        self._rows: list[tuple[torch.Tensor, int]] = []

    def before_val_epoch(self, runner: Any) -> None:
        """Discard the predictions of an interrupted evaluation."""
        self._rows = []

    before_test_epoch = before_val_epoch

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Keep the scores and labels of a batch."""
        self._rows += [(s.pred_score.float().cpu(), int(s.gt_label[0])) for s in outputs or ()]

    after_test_iter = after_val_iter

    def after_val_epoch(self, runner: Any, metrics: dict | None = None) -> None:
        """Write the file."""
        self._write(len(runner.val_dataloader.dataset), Path(runner.work_dir))

    def after_test_epoch(self, runner: Any, metrics: dict | None = None) -> None:
        """Write the file."""
        self._write(len(runner.test_dataloader.dataset), Path(runner.work_dir))

    def _write(self, size: int, folder: Path) -> None:
        rows = collect_results(self._rows, size, 'cpu')
        self._rows = []
        if not is_main_process():
            return
        partial = folder / f'.{self.file_name}'
        scores = torch.stack([score for score, _ in rows]).numpy()
        with partial.open('wb') as file:
            np.savez(file, scores=scores, labels=np.array([label for _, label in rows]))
        partial.replace(folder / self.file_name)
