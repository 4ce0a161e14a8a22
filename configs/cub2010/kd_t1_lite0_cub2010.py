# KD at T = 1, which is label denoising with the mixture of Eq. 7, here at alpha = 0.9.
_base_ = 'kd_lite0_cub2010.py'
model = dict(head=dict(soft_loss=dict(temperature=1.0, loss_weight=0.9), hard_weight=0.1))
