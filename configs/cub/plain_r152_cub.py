_base_ = 'plain_r50_cub.py'
model = dict(model='resnet152')
