# The teacher of the short recipe: the same 10,000 images, 8 epochs.
_base_ = 'plain_r20_cifar100_short.py'
model = dict(backbone=dict(depth=56))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=True, end=0.5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=7.5, by_epoch=True, begin=0.5, end=8, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=8, val_interval=8)
randomness = dict(seed=1)  # Other crops than its students train on.
