_base_ = ['plain_r20_cifar100_short.py', '../_base_/methods.py']
teacher_checkpoint = 'work_dirs/plain_r56_cifar100_short/epoch_8.pth'  # made by plain_r56_cifar100_short.py
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        type='MMPretrainTeacher',
        config='{{ fileDirname }}/plain_r56_cifar100_short.py',
        checkpoint=teacher_checkpoint,
        execution=dict(channels_last=True),
    ),
    head={{_base_.kd}},
)
