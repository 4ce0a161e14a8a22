"""Runner hooks: checks before training, exact resumption, plain checkpoints, summaries."""

from fnkd_plugin.mm.hooks.channels_last_hook import ChannelsLastHook
from fnkd_plugin.mm.hooks.check_classes_hook import CheckClassesHook
from fnkd_plugin.mm.hooks.check_weights_hook import CheckWeightsHook
from fnkd_plugin.mm.hooks.compile_hook import CompileHook
from fnkd_plugin.mm.hooks.evaluate_teacher_hook import EvaluateTeacherHook
from fnkd_plugin.mm.hooks.reproducible_hook import ReproducibleHook
from fnkd_plugin.mm.hooks.safe_checkpoint_hook import SafeCheckpointHook
from fnkd_plugin.mm.hooks.save_predictions_hook import SavePredictionsHook
from fnkd_plugin.mm.hooks.summary_hook import SummaryHook

__all__ = [
    'ChannelsLastHook',
    'CheckClassesHook',
    'CheckWeightsHook',
    'CompileHook',
    'EvaluateTeacherHook',
    'ReproducibleHook',
    'SafeCheckpointHook',
    'SavePredictionsHook',
    'SummaryHook',
]
