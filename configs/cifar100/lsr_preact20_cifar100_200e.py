_base_ = ['plain_preact20_cifar100_200e.py', '../_base_/methods.py']
model = dict(head=dict(loss={{_base_.lsr}}))
