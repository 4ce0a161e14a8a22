# For one CPU core: the first 10,000 training images, 3 epochs. Compare its numbers with each other only.
_base_ = [
    '../_base_/models/cifar_r20.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar_short_3e.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(num_workers=0, dataset=dict(indices=10000))
val_dataloader = dict(num_workers=0)
test_dataloader = val_dataloader
custom_hooks = [dict(type='ChannelsLastHook')]
