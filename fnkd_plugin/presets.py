"""Ready methods by name: what :func:`fnkd_plugin.distill` knows, and a base that configs of both styles inherit from.

Plain data alone, since MMEngine reads this file, too: ``_base_ = [..., __import__('fnkd_plugin').presets.__file__]`` in
a text-style config, ``with read_base(): from fnkd_plugin.presets import fnkd`` in a pure-Python one.
"""

# Hard-label losses. The paper prints neither of the two epsilons; 0.1 is our choice. ALSRLoss needs groups besides.
lsr = dict(type='LSRLoss', eps=0.1)
alsr = dict(type='ALSRLoss', eps_uniform=0.1, eps_near=0.1)

kd = dict(type='DistillHead', soft_loss=dict(type='KDLoss', temperature=4.0, loss_weight=0.5), hard_weight=0.5)
fnkd = dict(type='DistillHead', soft_loss=dict(type='FNKDLoss'))
# Of the public CIFAR benchmarks.
kd_benchmark = dict(
    type='DistillHead', soft_loss=dict(type='KDLoss', temperature=4.0, loss_weight=0.9), hard_weight=0.1
)
# Of the authors' script for CIFAR.
kd_authors = dict(type='DistillHead', soft_loss=dict(type='KDLoss', temperature=3.0, loss_weight=0.5), hard_weight=0.5)
fnkd_authors = dict(type='DistillHead', soft_loss=dict(type='FNKDLoss', tau=2.0, loss_weight=9.0))
