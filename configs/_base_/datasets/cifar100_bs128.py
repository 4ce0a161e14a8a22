# The paper's batches and numbers.
_base_ = 'cifar100_bs64.py'
data_preprocessor = dict(
    mean=[255 * m for m in (0.5070, 0.4865, 0.4409)],
    std=[255 * s for s in (0.2673, 0.2564, 0.2761)],
)
# The authors' code drops the last batch of an epoch.
train_dataloader = dict(batch_size=128, drop_last=True)
