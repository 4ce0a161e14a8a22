"""Groups of near classes from a trained teacher's confusions."""

import torch
from torch import Tensor

from fnkd_plugin.errors import SetupError, check_number


def off_target_mass(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean probability that a teacher assigns to each wrong class, by true class.

    Args:
        probabilities: The teacher's softmax, [N, K].
        labels: True classes [N].

    Returns:
        The mean probabilities of each true class with the diagonal set to 0, [K, K], fp64; rows of classes without
        images are 0.
    """
    count = probabilities.shape[1]
    total = torch.zeros(count, count, dtype=torch.float64, device=probabilities.device)
    total.index_add_(0, labels, probabilities.double())
    images = torch.bincount(labels, minlength=count).clamp_min(1)
    return (total / images[:, None]).fill_diagonal_(0)


def groups_from_confusions(mass: Tensor, top: int | None = None, share: float | None = None) -> list[list[int]]:
    """The classes that each class is most confused with (our choice; the paper derives A(x) only from names).

    The lists need not be symmetric. :func:`~fnkd_plugin.taxonomy.files.write_groups` writes them to a file that
    ``ALSRLoss(groups=...)`` reads. To choose ``top`` or ``share``, use a teacher's outputs on images that it was
    not trained on; on its training set confusions are rare.

    Args:
        mass: The result of :func:`off_target_mass`, or a confusion matrix with true classes in rows, [K, K]; the
            diagonal is ignored.
        top: Select the ``top`` classes with the most mass, >= 1, except those of mass 0.
        share: Select the classes with more than this share of a row's mass, in (0, 1).

    Returns:
        For each class the indices of its near classes, most confused first.

    Raises:
        SetupError: If ``mass`` is not square, finite and >= 0, or not exactly one of ``top`` and ``share`` is given.
    """
    if mass.ndim != 2 or mass.shape[0] != mass.shape[1] or not torch.isfinite(mass).all() or (mass < 0).any():
        raise SetupError(f'groups_from_confusions: mass must be K x K, finite and >= 0, but is {tuple(mass.shape)}.')
    if (top is None) == (share is None):
        raise SetupError('groups_from_confusions: give either top or share.')
    off = mass.double().clone().fill_diagonal_(0)
    order = off.sort(dim=1, descending=True, stable=True)
    if top is not None:
        if not isinstance(top, int) or top < 1:
            raise SetupError(f'groups_from_confusions: top must be an integer >= 1, but is {top!r}.')
        chosen = (torch.arange(len(off), device=off.device) < top) & (order.values > 0)
    else:
        least = check_number('groups_from_confusions', 'share', share, positive=True, below=1)
        chosen = order.values > least * off.sum(dim=1, keepdim=True)
    return [row[keep].tolist() for row, keep in zip(order.indices, chosen, strict=True)]
