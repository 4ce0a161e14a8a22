# The student of the paper's code: an input BN without affine, BN and ReLU before each convolution.
_base_ = [
    '../_base_/models/cifar_r20.py',
    '../_base_/datasets/cifar10_bs128.py',
    '../_base_/schedules/cifar_200e.py',
    '../_base_/default_runtime.py',
]
model = dict(backbone=dict(preact=True, input_norm=True), head=dict(num_classes=10))
