# Self-distillation: a teacher of the student's own architecture. Born again: run this once more, for each generation
# with the checkpoint of the one before and a folder of its own (docs/methods.md).
_base_ = 'fnkd_lite0_cub2010.py'
teacher_checkpoint = 'work_dirs/plain_lite0_cub2010/epoch_5.pth'  # generation 1, made by plain_lite0_cub2010.py
model = dict(teacher=dict(model='tf_efficientnet_lite0', checkpoint=teacher_checkpoint))
randomness = dict(seed=3)  # Other crops than its teacher was trained on.
