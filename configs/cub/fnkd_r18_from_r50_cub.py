_base_ = 'plain_r18_cub.py'
teacher_checkpoint = 'work_dirs/plain_r50_cub/epoch_100.pth'  # made by plain_r50_cub.py
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(type='TimmTeacher', model='resnet50', checkpoint=teacher_checkpoint),
    head=dict(type='DistillHead', soft_loss=dict(type='FNKDLoss')),
)
