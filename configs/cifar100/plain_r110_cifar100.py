_base_ = 'plain_r20_cifar100.py'
model = dict(backbone=dict(depth=110))
randomness = dict(seed=2)  # Other crops than its students train on.
