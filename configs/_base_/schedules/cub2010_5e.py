# SGD with half an epoch of warm-up and a cosine to zero, both by iteration. The new classifier learns ten times as fast
# as the pretrained rest, as is usual in fine-tuning: without that, so short a schedule measures little but its start.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(classifier=dict(lr_mult=10), norm_product=dict(lr_mult=10))),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=True, end=0.5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=4.5, by_epoch=True, begin=0.5, end=5, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=5, val_interval=5)
val_cfg = dict()
test_cfg = dict()
