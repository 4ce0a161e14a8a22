# Hypersphere embedding: ArcFace without a margin. Logits are cosines times the scale, which is then the one temperature
# of all images; 16 is our choice.
_base_ = 'plain_lite0_cub2010.py'
model = dict(
    _delete_=True,
    type='ImageClassifier',
    backbone=dict(
        type='TIMMBackbone',
        model_name='tf_efficientnet_lite0',
        checkpoint_path='{{$FNKD_WEIGHTS:weights}}/tf_efficientnet_lite0.fp16.safetensors',
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='ArcFaceClsHead', num_classes=200, in_channels=1280, scale=16.0, margins=0.0),
)
custom_hooks = [dict(type='ChannelsLastHook')]
