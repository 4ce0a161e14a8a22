_base_ = 'plain_r8x4_cifar100.py'
teacher_checkpoint = 'work_dirs/plain_r32x4_cifar100/epoch_240.pth'  # made by plain_r32x4_cifar100.py
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        type='MMPretrainTeacher',
        config='{{ fileDirname }}/plain_r32x4_cifar100.py',
        checkpoint=teacher_checkpoint,
    ),
    head=dict(type='DistillHead', soft_loss=dict(type='FNKDLoss')),
)
