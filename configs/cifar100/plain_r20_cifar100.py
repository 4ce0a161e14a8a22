_base_ = [
    '../_base_/models/cifar_r20.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar_240e.py',
    '../_base_/default_runtime.py',
]
