_base_ = 'plain_preact20_cifar100_200e.py'
model = dict(backbone=dict(depth=56))
randomness = dict(seed=1)  # Other crops than its students train on.
