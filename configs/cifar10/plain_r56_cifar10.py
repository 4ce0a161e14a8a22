_base_ = 'plain_r20_cifar10.py'
model = dict(backbone=dict(depth=56))
randomness = dict(seed=1)  # Other crops than its students train on.
