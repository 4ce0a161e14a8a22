# What the variants of a pair differ in: a hard-label loss (lsr, alsr_*) or a DistillHead (kd*, fnkd*). The paper prints
# neither of the two epsilons; 0.1 is our choice.
lsr = dict(type='LSRLoss', eps=0.1)
alsr_cub = dict(type='ALSRLoss', eps_uniform=0.1, eps_near=0.1, groups='cub')
alsr_cars = dict(type='ALSRLoss', eps_uniform=0.1, eps_near=0.1, groups='cars_make')
alsr_cifar100 = dict(type='ALSRLoss', eps_uniform=0.1, eps_near=0.1, groups='cifar100')
alsr_cifar10 = dict(type='ALSRLoss', eps_uniform=0.1, eps_near=0.1, groups='{{ fileDirname }}/cifar10_groups.txt')
kd = dict(type='DistillHead', soft_loss=dict(type='KDLoss', temperature=4.0, loss_weight=0.5), hard_weight=0.5)
fnkd = dict(type='DistillHead', soft_loss=dict(type='FNKDLoss'))
# Of the public CIFAR benchmarks.
kd_benchmark = dict(
    type='DistillHead', soft_loss=dict(type='KDLoss', temperature=4.0, loss_weight=0.9), hard_weight=0.1
)
# Of the authors' script for CIFAR.
kd_authors = dict(type='DistillHead', soft_loss=dict(type='KDLoss', temperature=3.0, loss_weight=0.5), hard_weight=0.5)
fnkd_authors = dict(type='DistillHead', soft_loss=dict(type='FNKDLoss', tau=2.0, loss_weight=9.0))
