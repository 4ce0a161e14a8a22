# The teacher of fnkd_r50_cub.py.
_base_ = '../plain_r50_cub.py'
model = dict(model='resnet152')
