_base_ = 'plain_mbv3_cub2010.py'
model = dict(loss=dict(type='ALSRLoss', eps_uniform=0.1, eps_near=0.1, groups='cub'))
