# The teacher of the students here.
_base_ = 'plain_lite0_cub2010.py'
model = dict(
    model='tf_efficientnet_lite2', checkpoint='{{$FNKD_WEIGHTS:weights}}/tf_efficientnet_lite2.fp16.safetensors'
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=True, end=0.5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=9.5, by_epoch=True, begin=0.5, end=10, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=10, val_interval=5)
randomness = dict(seed=1)  # Other crops than its students train on.
