_base_ = 'plain_r20_cifar100.py'
model = dict(backbone=dict(depth=110))
