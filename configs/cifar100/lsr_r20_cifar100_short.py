_base_ = ['plain_r20_cifar100_short.py', '../_base_/methods.py']
model = dict(head=dict(loss={{_base_.lsr}}))
