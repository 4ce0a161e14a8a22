# MobileNetV2 of half width, with one stride less for 32 pixels.
_base_ = 'plain_r20_cifar100.py'
model = dict(
    backbone=dict(_delete_=True, type='CIFARMobileNetV2', widen_factor=0.5),
    head=dict(in_channels=1280),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))  # as the public benchmarks train MobileNetV2
