"""Evaluation of the teacher before training."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from mmpretrain.structures import DataSample

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.distiller import Distiller
from fnkd_plugin.mm.tasks import unwrapped
from fnkd_plugin.rng import isolated_rng


@HOOKS.register_module()
class EvaluateTeacherHook(Hook):
    """Evaluates the teacher on the validation set before the first epoch, with the run's own metrics.

    Warns if its accuracy is not two standard deviations above chance: its normalisation or class order is then probably
    wrong.

    Attributes:
        result: The metrics in one line; empty before the evaluation.
    """

    result = ''

    def before_train(self, runner: Any) -> None:
        """Evaluate and log.

        Raises:
            SetupError: If the model is not a Distiller, or there is no validation set.
        """
        model = unwrapped(runner.model)
        if not isinstance(model, Distiller):
            raise SetupError('EvaluateTeacherHook: the model is not a Distiller and has no teacher.')
        if runner._val_loop is None:
            raise SetupError('EvaluateTeacherHook: the config has no validation set; give val_dataloader and val_cfg.')
        loop = runner.val_loop
        evaluator = copy.deepcopy(loop.evaluator)
        right = total = 0
        with isolated_rng(), torch.no_grad():
            for batch in loop.dataloader:
                data = model.data_preprocessor(batch, False)
                logits = model.distillation.predict(data['inputs'], data['data_samples']).logits.float()
                samples = [_predicted(s, row) for s, row in zip(data['data_samples'], logits, strict=True)]
                evaluator.process(data_samples=samples, data_batch=batch)
                right += sum(int(row.argmax()) in s.gt_label.tolist() for s, row in zip(samples, logits, strict=True))
                total += len(samples)
        metrics = evaluator.evaluate(len(loop.dataloader.dataset))
        numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
        self.result = ', '.join(f'{name} {value:.4g}' for name, value in numbers.items())
        # Per-class metrics, or a confusion matrix.
        others = [f'\n{name}: {value}' for name, value in metrics.items() if name not in numbers]
        runner.logger.info(
            f'Teacher {model.distillation.teacher.name} on the validation set: {self.result}{"".join(others)}'
        )
        counts = torch.tensor([right, total])
        all_reduce(counts)
        right, total = counts.tolist()
        accuracy, chance = right / max(total, 1), 1 / model.distillation.teacher.num_classes
        if accuracy <= chance + 2 * math.sqrt(chance * (1 - chance) / max(total, 1)):
            runner.logger.warning(
                f"The teacher's accuracy on the validation set is {accuracy:.1%}, chance is {chance:.1%}: its "
                'normalisation or class order is probably not that of its training.'
            )


def _predicted(sample: DataSample, logits: torch.Tensor) -> DataSample:
    return sample.set_pred_score(F.softmax(logits, 0)).set_pred_label(logits.argmax().view(1))
