"""The compensation that each method adds to a one-hot label (Eq. 1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fnkd_plugin.analysis.collect import Policy
from fnkd_plugin.analysis.subject import Batch, Subject
from fnkd_plugin.functional import alsr_compensation, fnkd_compensation, kd_compensation, lsr_compensation

# Common values (our choice; the paper does not state its own).
EPS, ALPHA, LAMBDA_SQUARED = 0.1, 0.5, 9.0
STRENGTHS = f'LSR ε = {EPS}; ALSR ε₁ = ε₂ = {EPS}; KD α = {ALPHA}; FNKD λ² = {LAMBDA_SQUARED:g}'


def compensation_cards(
    subject: Subject, policy: Policy, neighbours: Sequence[Sequence[int]] | None, reasons: Mapping[int, str]
) -> list[dict[str, Any]]:
    """The compensations of images :func:`side_by_side`, with ``image`` (index), ``why`` and ``norm``.

    Args:
        subject: The subject of the analysis.
        policy: The temperatures.
        neighbours: A(x) of each class, or None.
        reasons: Why each image is shown, by index.
    """
    cards = []
    for batch in subject.batches(list(reasons)):
        labels = torch.from_numpy(subject.clean[batch.indices])
        etas = compensations(batch, labels, policy, neighbours)
        norms = batch.source.feature_norm
        assert norms is not None
        for row, (index, label) in enumerate(zip(batch.indices, labels.tolist(), strict=True)):
            shares = side_by_side({name: eta[row] for name, eta in etas.items()}, label)
            cards.append(dict(why=reasons[index], image=index, norm=float(norms[row]), **shares))
    return cards


def compensations(
    batch: Batch, labels: Tensor, policy: Policy, neighbours: Sequence[Sequence[int]] | None
) -> dict[str, Tensor]:
    """The compensation η [N, K] of each method for the labels [N]; ALSR's only with ``neighbours``."""
    source, norm = batch.source, batch.model.feature_norm
    assert norm is not None  # the student's, which weights the teacher's distribution
    labels = labels.to(source.logits.device)
    found = {'LSR': lsr_compensation(labels, source.logits.shape[1], EPS)}
    if neighbours is not None:
        found['ALSR'] = alsr_compensation(labels, neighbours, EPS, EPS)
    found['KD'] = kd_compensation(policy.kd(source), ALPHA)
    found['FNKD'] = fnkd_compensation(policy.fnkd(source), norm, policy.tau, LAMBDA_SQUARED, policy.mode)
    return found


def side_by_side(etas: dict[str, Tensor], label: int, top: int = 5) -> dict[str, Any]:
    """The compensations of one image normalised to sum 1: on the label's class, on the ``top`` others, on the rest.

    Args:
        etas: η [K] by method.
        label: The image's class.
        top: The number of other classes, those with the largest share under any method.

    Returns:
        ``total``: the sum of η by method; ``rows``: dicts of ``index`` (None for the rest) and ``shares`` by method;
        ``largest``: the largest share of one class.
    """
    totals = {name: float(eta.sum()) for name, eta in etas.items()}
    shares = torch.stack([eta / eta.sum() for eta in etas.values()]).cpu()
    order = shares.amax(0).argsort(descending=True).tolist()
    chosen = [label, *[k for k in order if k != label][:top]]
    rest = (1 - shares[:, chosen].sum(1)).clamp_min(0)
    columns = {**{k: shares[:, k] for k in chosen}, None: rest}
    rows = [dict(index=k, shares=dict(zip(etas, column.tolist(), strict=True))) for k, column in columns.items()]
    return dict(total=totals, rows=rows, largest=float(shares[:, chosen].max()))
