_base_ = 'plain_preact20_cifar10_200e.py'
model = dict(backbone=dict(depth=110))
randomness = dict(seed=2)  # Other crops than its students train on.
