_base_ = [
    '../_base_/datasets/cub_bs32_224.py',
    '../_base_/schedules/finegrained_bs32_100e.py',
    '../_base_/default_runtime.py',
]
# timm fetches the ImageNet weights from its hub.
model = dict(type='TimmStudent', model='resnet50', num_classes=200, pretrained=True)
randomness = dict(seed=1)  # Other crops than its students train on.
