_base_ = 'plain_r20_cifar10.py'
model = dict(backbone=dict(depth=56))
