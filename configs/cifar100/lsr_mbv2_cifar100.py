_base_ = ['plain_mbv2_cifar100.py', '../_base_/methods.py']
model = dict(head=dict(loss={{_base_.lsr}}))
