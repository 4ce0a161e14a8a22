_base_ = 'plain_r50_cars.py'
model = dict(model='resnet18')
randomness = dict(seed=0)  # The base config teaches, with a seed of its own.
