_base_ = ['plain_r20_cifar10.py', '../_base_/methods.py']
model = dict(head=dict(loss={{_base_.alsr_cifar10}}))
