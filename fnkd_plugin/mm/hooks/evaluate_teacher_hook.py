"""The teacher's own result before training, so that a wrong teacher is seen at once."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmpretrain.registry import HOOKS
from mmpretrain.structures import DataSample

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.distiller import Distiller
from fnkd_plugin.rng import isolated_rng


@HOOKS.register_module()
class EvaluateTeacherHook(Hook):
    """Evaluates the teacher on the validation set before the first epoch, with the run's own metrics.

    Warns when it is right no more often than chance, up to two standard deviations: then its normalisation or
    the order of its classes is probably wrong.
    """

    def before_train(self, runner: Any) -> None:
        """Evaluate and log."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(model, Distiller):
            raise SetupError('EvaluateTeacherHook: the model has no teacher; it is no Distiller.')
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
        shown = ', '.join(f'{name} {value:.4g}' for name, value in metrics.items())
        runner.logger.info(f'Teacher {model.distillation.teacher.name} on the validation set: {shown}')
        counts = torch.tensor([right, total])
        all_reduce(counts)
        right, total = counts.tolist()
        accuracy, chance = right / max(total, 1), 1 / model.distillation.teacher.num_classes
        if accuracy <= chance + 2 * math.sqrt(chance * (1 - chance) / max(total, 1)):
            runner.logger.warning(
                f'The teacher is right on {accuracy:.1%} of the validation images, chance is {chance:.1%}: its '
                'normalisation or the order of its classes is probably not what it was trained with.'
            )


def _predicted(sample: DataSample, logits: torch.Tensor) -> DataSample:
    return sample.set_pred_score(F.softmax(logits, 0)).set_pred_label(logits.argmax().view(1))
