# The teacher: sixteen times the student's parameters, and all 714 scans of the training split.
_base_ = 'plain_digits.py'
model = dict(
    backbone=dict(arch=dict(embed_dims=128, depth=3)),
    head=dict(in_channels=128),
)
train_dataloader = dict(batch_size=64, dataset=dict(per_class=None))
