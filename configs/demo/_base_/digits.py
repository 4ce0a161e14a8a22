# Scikit-learn's 8x8 scans. Images shift by up to a pixel while training; a scan's background is 0.
data_preprocessor = dict(mean=[73.0], std=[90.0], to_rgb=False, num_classes=10)
train_pipeline = [
    dict(type='RandomCrop', crop_size=8, padding=1),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    dataset=dict(type='Digits', split='train', per_class=5, pipeline=train_pipeline, serialize_data=False),
    sampler=dict(type='InfiniteSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=360,
    num_workers=0,
    dataset=dict(type='Digits', split='val', pipeline=test_pipeline, serialize_data=False),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = dict(
    batch_size=360,
    num_workers=0,
    dataset=dict(type='Digits', split='test', pipeline=test_pipeline, serialize_data=False),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
