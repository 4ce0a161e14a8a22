_base_ = ['plain_preact56_cifar10_200e.py', '../_base_/methods.py']
model = dict(head=dict(loss={{_base_.lsr}}))
