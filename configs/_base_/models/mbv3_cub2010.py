# A seventh of the teacher's parameters, and without ImageNet's weights: a student that is not nearly as good as it.
model = dict(type='TimmStudent', model='mobilenetv3_small_050', num_classes=200, channels_last=True)
