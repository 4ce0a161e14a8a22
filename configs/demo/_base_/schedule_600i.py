# AdamW with a tenth of warm-up and a cosine to zero, by iteration: with 50 images epochs mean little.
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.02, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=60),
    dict(type='CosineAnnealingLR', T_max=540, by_epoch=False, begin=60, end=600),
]
train_cfg = dict(by_epoch=False, max_iters=600, val_interval=600)
val_cfg = dict()
test_cfg = dict()
