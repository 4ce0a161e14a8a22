_base_ = 'plain_preact20_cifar100_200e.py'
model = dict(backbone=dict(depth=110))
randomness = dict(seed=2)  # Other crops than its students train on.
