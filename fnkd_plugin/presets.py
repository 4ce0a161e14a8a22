"""Presets of methods by name, for :func:`fnkd_plugin.distill` and as a base of configs of both styles.

Only plain data, since MMEngine parses this file: ``_base_ = [..., __import__('fnkd_plugin').presets.__file__]`` in
a text-style config, ``with read_base(): from fnkd_plugin.presets import fnkd`` in a pure-Python one.
"""

# Hard-label losses. The paper states neither epsilon; 0.1 is our choice. ALSRLoss also needs groups.
lsr = dict(type='LSRLoss', eps=0.1)
alsr = dict(type='ALSRLoss', eps_uniform=0.1, eps_near=0.1)

kd = dict(type='DistillHead', soft_loss=dict(type='KDLoss', temperature=4.0, loss_weight=0.5), hard_weight=0.5)
# Label denoising by the mixture of Eq. 7, at alpha = 0.5.
kd_t1 = dict(type='DistillHead', soft_loss=dict(type='KDLoss', temperature=1.0, loss_weight=0.5), hard_weight=0.5)
fnkd = dict(type='DistillHead', soft_loss=dict(type='FNKDLoss'))
# As in the public CIFAR benchmarks.
kd_benchmark = dict(
    type='DistillHead', soft_loss=dict(type='KDLoss', temperature=4.0, loss_weight=0.9), hard_weight=0.1
)
# As in the authors' script for CIFAR.
kd_authors = dict(type='DistillHead', soft_loss=dict(type='KDLoss', temperature=3.0, loss_weight=0.5), hard_weight=0.5)
fnkd_authors = dict(type='DistillHead', soft_loss=dict(type='FNKDLoss', tau=2.0, loss_weight=9.0, mode='clip'))
# Newer logit methods with their authors' settings for CIFAR-100. DKD: beta is 2 for ResNet-56 to 20 and 110 to 32, and
# the warm-up 20 of 240 epochs.
dkd = dict(type='DistillHead', soft_loss=dict(type='DKDLoss', alpha=1.0, beta=8.0, temperature=4.0), warmup=1 / 12)
dkd_beta2 = dict(
    type='DistillHead', soft_loss=dict(type='DKDLoss', alpha=1.0, beta=2.0, temperature=4.0), warmup=1 / 12
)
dist = dict(type='DistillHead', soft_loss=dict(type='DISTLoss', beta=2.0, gamma=2.0, temperature=4.0))
lskd = dict(type='DistillHead', soft_loss=dict(type='LSKDLoss', temperature=2.0, loss_weight=9.0), hard_weight=0.1)
normkd = dict(type='DistillHead', soft_loss=dict(type='NormKDLoss', temperature=2.0, loss_weight=0.9), hard_weight=0.1)
ttm = dict(type='DistillHead', soft_loss=dict(type='TTMLoss', gamma=0.3, loss_weight=7.0))
wttm = dict(type='DistillHead', soft_loss=dict(type='WTTMLoss', gamma=0.3, loss_weight=1.5))
# TTM with the teacher's feature norm as temperature (our method).
fnttm = dict(type='DistillHead', soft_loss=dict(type='FNTTMLoss'))
