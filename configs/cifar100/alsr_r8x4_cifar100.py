_base_ = ['plain_r8x4_cifar100.py', '../_base_/methods.py']
model = dict(head=dict(loss={{_base_.alsr_cifar100}}))
