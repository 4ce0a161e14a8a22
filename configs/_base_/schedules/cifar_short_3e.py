# For one CPU core (our choice): half an epoch of warm-up and a cosine to zero, both by iteration.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=True, end=0.5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=2.5, by_epoch=True, begin=0.5, end=3, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=3)
val_cfg = dict()
test_cfg = dict()
