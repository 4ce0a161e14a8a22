_base_ = ['plain_r18_cars.py', '../_base_/methods.py']
model = dict(loss={{_base_.alsr_cars}})
