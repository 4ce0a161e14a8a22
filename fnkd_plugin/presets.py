"""Presets of methods by name, for :func:`fnkd_plugin.distill` and as a base that configs of both styles inherit from.

Plain data only, since MMEngine reads this file, too: ``_base_ = [..., __import__('fnkd_plugin').presets.__file__]`` in
a text-style config, ``with read_base(): from fnkd_plugin.presets import fnkd`` in a pure-Python one.
"""

# Hard-label losses. The paper prints neither of the two epsilons; 0.1 is our choice. ALSRLoss needs groups besides.
lsr = dict(type='LSRLoss', eps=0.1)
alsr = dict(type='ALSRLoss', eps_uniform=0.1, eps_near=0.1)

kd = dict(type='DistillHead', soft_loss=dict(type='KDLoss', temperature=4.0, loss_weight=0.5), hard_weight=0.5)
# Label denoising by Eq. 7's mixture, at alpha = 0.5.
kd_t1 = dict(type='DistillHead', soft_loss=dict(type='KDLoss', temperature=1.0, loss_weight=0.5), hard_weight=0.5)
fnkd = dict(type='DistillHead', soft_loss=dict(type='FNKDLoss'))
# Of the public CIFAR benchmarks.
kd_benchmark = dict(
    type='DistillHead', soft_loss=dict(type='KDLoss', temperature=4.0, loss_weight=0.9), hard_weight=0.1
)
# Of the authors' script for CIFAR.
kd_authors = dict(type='DistillHead', soft_loss=dict(type='KDLoss', temperature=3.0, loss_weight=0.5), hard_weight=0.5)
fnkd_authors = dict(type='DistillHead', soft_loss=dict(type='FNKDLoss', tau=2.0, loss_weight=9.0))
# Newer logit methods, as their authors train on CIFAR-100; DKD's beta is 2 for ResNet-56 to 20 and 110 to 32.
dkd = dict(type='DistillHead', soft_loss=dict(type='DKDLoss', alpha=1.0, beta=8.0, temperature=4.0), warmup=20)
dkd_beta2 = dict(type='DistillHead', soft_loss=dict(type='DKDLoss', alpha=1.0, beta=2.0, temperature=4.0), warmup=20)
dist = dict(type='DistillHead', soft_loss=dict(type='DISTLoss', beta=2.0, gamma=2.0, temperature=4.0))
ls_kd = dict(type='DistillHead', soft_loss=dict(type='LSKDLoss', temperature=2.0, loss_weight=9.0), hard_weight=0.1)
normkd = dict(type='DistillHead', soft_loss=dict(type='NormKDLoss', temperature=2.0, loss_weight=0.9), hard_weight=0.1)
ttm = dict(type='DistillHead', soft_loss=dict(type='TTMLoss', gamma=0.3, loss_weight=7.0))
wttm = dict(type='DistillHead', soft_loss=dict(type='WTTMLoss', gamma=0.3, loss_weight=1.5))
# TTM whose temperature is the teacher's feature norm (ours).
fnttm = dict(type='DistillHead', soft_loss=dict(type='FNTTMLoss'))
