# The teacher: sixteen times the student's parameters, and all 714 scans of the training split.
_base_ = 'plain_digits.py'
model = dict(
    backbone=dict(arch=dict(embed_dims=128, depth=3)),
    head=dict(in_channels=128),
)
train_dataloader = dict(batch_size=64, dataset=dict(per_class=None))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=30),
    dict(type='CosineAnnealingLR', T_max=270, by_epoch=False, begin=30, end=300),
]
train_cfg = dict(max_iters=300, val_interval=300)
default_hooks = dict(checkpoint=dict(interval=300))
randomness = dict(seed=1)  # Other crops than its students train on.
