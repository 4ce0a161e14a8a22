_base_ = ['plain_preact20_cifar10_200e.py', '../_base_/methods.py']
model = dict(head=dict(loss={{_base_.lsr}}))
