_base_ = 'plain_mbv3_cub2010.py'
model = dict(loss=dict(type='LSRLoss', eps=0.1))
