# The paper's batches.
_base_ = 'cifar10_bs64.py'
train_dataloader = dict(batch_size=128)
