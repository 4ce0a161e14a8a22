_base_ = 'plain_r50_cars.py'
model = dict(model='resnet18')
