# MMPretrain's runtime, our import, and the two hooks that tools/train.py adds to any config.
_base_ = 'mmpretrain::_base_/default_runtime.py'
custom_imports = dict(imports=['fnkd_plugin'], allow_failed_imports=False)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(max_keep_ckpts=2),
    reproducible=dict(type='ReproducibleHook'),
    safe_checkpoint=dict(type='SafeCheckpointHook'),
)
randomness = dict(seed=0)
