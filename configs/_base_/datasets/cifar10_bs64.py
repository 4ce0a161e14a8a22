_base_ = 'cifar100_bs64.py'
data_root = 'data/cifar10'  # holds cifar-10-batches-py/
data_preprocessor = dict(
    mean=[255 * m for m in (0.4914, 0.4822, 0.4465)],
    std=[255 * s for s in (0.2470, 0.2435, 0.2616)],
    num_classes=10,
)
train_dataloader = dict(dataset=dict(type='CIFAR10', data_root=data_root))
val_dataloader = dict(dataset=dict(type='CIFAR10', data_root=data_root))
test_dataloader = val_dataloader
