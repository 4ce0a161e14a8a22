_base_ = 'plain_r20_cifar100.py'
model = dict(backbone=dict(depth=32, stem_channels=32, base_channels=64), head=dict(in_channels=256))
randomness = dict(seed=1)  # Other crops than its students train on.
