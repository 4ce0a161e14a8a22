"""The OpenMMLab side: the distilled model, hooks, configs, checkpoints, data sets and the model zoo."""
