_base_ = 'plain_r50_cub.py'
model = dict(model='resnet152')
randomness = dict(seed=2)  # Other crops than its students train on.
