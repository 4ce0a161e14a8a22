# EfficientNet-Lite0 for 200 birds, from ImageNet weights. FNKD_WEIGHTS names their folder.
model = dict(
    type='TimmStudent',
    model='tf_efficientnet_lite0',
    num_classes=200,
    channels_last=True,
    checkpoint='{{$FNKD_WEIGHTS:weights}}/tf_efficientnet_lite0.fp16.safetensors',
)
