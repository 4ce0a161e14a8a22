_base_ = ['plain_r56_cifar10.py', '../_base_/methods.py']
model = dict(head=dict(loss={{_base_.lsr}}))
