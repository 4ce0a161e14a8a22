# AdamW with a tenth of warm-up and a cosine to zero, by iteration: with 50 images epochs mean little.
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.5))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=80),
    dict(type='CosineAnnealingLR', T_max=720, by_epoch=False, begin=80, end=800),
]
train_cfg = dict(by_epoch=False, max_iters=800, val_interval=800)
val_cfg = dict()
test_cfg = dict()
