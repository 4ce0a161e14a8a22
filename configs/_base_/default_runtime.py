# MMPretrain's runtime, our import, and the hooks that tools/train.py adds to any config.
_base_ = 'mmpretrain::_base_/default_runtime.py'
custom_imports = dict(imports=['fnkd_plugin'], allow_failed_imports=False)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(max_keep_ckpts=2),
    reproducible=dict(type='ReproducibleHook'),
    safe_checkpoint=dict(type='SafeCheckpointHook'),
    check_classes=dict(type='CheckClassesHook'),
    check_weights=dict(type='CheckWeightsHook'),
    summary=dict(type='SummaryHook'),
)
randomness = dict(seed=0)
