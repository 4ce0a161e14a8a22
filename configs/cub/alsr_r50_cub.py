_base_ = ['plain_r50_cub.py', '../_base_/methods.py']
model = dict(loss={{_base_.alsr_cub}})
