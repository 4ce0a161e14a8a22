# CIFAR-100 as the public distillation benchmarks read it; the folder holds cifar-100-python/. MMPretrain fetches it if
# it is not there. Its images are RGB as loaded, so to_rgb=False keeps them so.
data_root = 'data/cifar100'
data_preprocessor = dict(
    mean=[255 * m for m in (0.5071, 0.4867, 0.4408)],
    std=[255 * s for s in (0.2675, 0.2565, 0.2761)],
    to_rgb=False,
    num_classes=100,
)
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    dataset=dict(type='CIFAR100', data_root=data_root, split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=500,
    num_workers=1,
    dataset=dict(type='CIFAR100', data_root=data_root, split='test', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
