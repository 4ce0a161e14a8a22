_base_ = 'plain_digits.py'
teacher_checkpoint = 'work_dirs/teacher_digits/iter_300.pth'  # made by teacher_digits.py
model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(
        type='MMPretrainTeacher',
        config='{{ fileDirname }}/teacher_digits.py',
        checkpoint=teacher_checkpoint,
    ),
    head=dict(type='DistillHead', soft_loss=dict(type='FNKDLoss')),
)
