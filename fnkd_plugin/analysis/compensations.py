"""The compensation that each method adds to a one-hot label (Eq. 1), for one image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fnkd_plugin.analysis.collect import Policy, source_of
from fnkd_plugin.analysis.thumbnails import Shown
from fnkd_plugin.functional import alsr_compensation, fnkd_compensation, kd_compensation, lsr_compensation

# Common values (our choice; the paper does not state its own).
EPS, ALPHA, LAMBDA_SQUARED = 0.1, 0.5, 9.0
STRENGTHS = f'LSR ε = {EPS}; ALSR ε₁ = ε₂ = {EPS}; KD α = {ALPHA}; FNKD λ² = {LAMBDA_SQUARED:g}'


def compensations(
    shown: Shown, label: int, policy: Policy, neighbours: Sequence[Sequence[int]] | None
) -> dict[str, Tensor]:
    """The compensation η [K] of each method for one image; ALSR's only with ``neighbours``."""
    source = source_of(shown.model, shown.teacher)
    norm = shown.model.feature_norm  # the student's, which weights the teacher's distribution
    assert norm is not None
    num_classes = source.logits.shape[1]
    labels = torch.tensor([label], device=source.logits.device)
    found = {'LSR': lsr_compensation(labels, num_classes, EPS)}
    if neighbours is not None:
        found['ALSR'] = alsr_compensation(labels, neighbours, EPS, EPS)
    found['KD'] = kd_compensation(policy.kd(source), ALPHA)
    found['FNKD'] = fnkd_compensation(policy.fnkd(source), norm, policy.tau, LAMBDA_SQUARED, policy.mode)
    return {name: eta.squeeze(0).cpu() for name, eta in found.items()}


def side_by_side(etas: dict[str, Tensor], label: int, top: int = 5) -> dict[str, Any]:
    """The compensations normalised to sum 1: on the label's class, on the ``top`` others, on the rest.

    Args:
        etas: η [K] by method.
        label: The image's class.
        top: The number of other classes, those with the largest share under any method.

    Returns:
        ``total``: the sum of η by method; ``rows``: dicts of ``index`` (None for the rest) and ``shares`` by method;
        ``largest``: the largest share of one class.
    """
    shares = {name: eta / eta.sum() for name, eta in etas.items()}
    largest = torch.stack(list(shares.values())).max(dim=0).values
    largest[label] = -1
    others = largest.topk(min(top, len(largest) - 1)).indices.tolist()
    rows = [dict(index=k, shares={name: float(share[k]) for name, share in shares.items()}) for k in [label, *others]]
    rest = {name: max(0.0, 1 - sum(row['shares'][name] for row in rows)) for name in shares}
    return dict(
        total={name: float(eta.sum()) for name, eta in etas.items()},
        rows=[*rows, dict(index=None, shares=rest)],
        largest=max(share for row in rows for share in row['shares'].values()),
    )
