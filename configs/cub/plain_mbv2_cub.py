_base_ = 'plain_r50_cub.py'
model = dict(model='mobilenetv2_100')
randomness = dict(seed=0)  # The base config teaches, with a seed of its own.
