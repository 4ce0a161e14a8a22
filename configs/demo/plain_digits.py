# The student: a small ConvMixer (3,562 parameters) that sees five scans of each digit.
_base_ = ['../_base_/default_runtime.py', '_base_/digits.py', '_base_/schedule_800i.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ConvMixer',
        arch=dict(embed_dims=32, depth=2, patch_size=2, kernel_size=3),
        in_channels=1,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=32, loss=dict(type='CrossEntropyLoss')),
)
default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(by_epoch=False, interval=800, max_keep_ckpts=1),
)
log_processor = dict(by_epoch=False)
