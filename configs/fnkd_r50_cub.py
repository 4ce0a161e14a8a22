# The paper's ResNet-152 -> ResNet-50 on CUB-200-2011. Give your own files with
# --cfg-options data_root=FOLDER teacher_checkpoint=FILE.
_base_ = 'plain_r50_cub.py'
teacher_checkpoint = 'work_dirs/r152_cub/epoch_100.pth'  # made by configs/teachers/r152_cub.py
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(type='TimmTeacher', model='resnet152', checkpoint=teacher_checkpoint),
    head=dict(type='DistillHead', soft_loss=dict(type='FNKDLoss')),
)
