# What the variants of a pair differ in: a hard-label loss (lsr, alsr_*) or a DistillHead (kd*, fnkd*, dkd*, dist,
# ls_kd, normkd), most of them in fnkd_plugin/presets.py.
_base_ = __import__('fnkd_plugin').presets.__file__
alsr_cub = dict(type='ALSRLoss', eps_uniform=0.1, eps_near=0.1, groups='cub')
alsr_cars = dict(type='ALSRLoss', eps_uniform=0.1, eps_near=0.1, groups='cars_make')
alsr_cifar100 = dict(type='ALSRLoss', eps_uniform=0.1, eps_near=0.1, groups='cifar100')
alsr_cifar10 = dict(type='ALSRLoss', eps_uniform=0.1, eps_near=0.1, groups='{{ fileDirname }}/cifar10_groups.txt')
