# The paper's batches.
_base_ = 'cifar10_bs64.py'
# The authors' code drops the last batch of an epoch.
train_dataloader = dict(batch_size=128, drop_last=True)
