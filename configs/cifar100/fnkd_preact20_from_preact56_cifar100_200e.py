_base_ = 'plain_preact20_cifar100_200e.py'
teacher_checkpoint = 'work_dirs/plain_preact56_cifar100_200e/epoch_200.pth'  # made by plain_preact56_cifar100_200e.py
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        type='MMPretrainTeacher',
        config='{{ fileDirname }}/plain_preact56_cifar100_200e.py',
        checkpoint=teacher_checkpoint,
    ),
    # As in the authors' script.
    head=dict(type='DistillHead', soft_loss=dict(type='FNKDLoss', tau=2.0, loss_weight=9.0, mode='clip')),
)
