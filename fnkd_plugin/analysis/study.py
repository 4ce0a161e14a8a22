"""Computes all results of an analysis from its subject."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fnkd_plugin.analysis import indicators, statistics
from fnkd_plugin.analysis.collect import Columns, Policy, collect
from fnkd_plugin.analysis.compensations import compensation_cards
from fnkd_plugin.analysis.subject import Subject
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.datasets.flipped_labels import flip_labels, flippable

GIVEN = 'given'
IN_DATA = 'flipped in the data set'


@dataclass(frozen=True)
class StudyOptions:
    """Options of a study.

    Attributes:
        neighbours: A(x) of each class, or None.
        flips: Shares of labels to flip, each in [0, 1).
        classes: Indices of the classes to show; None for :func:`~fnkd_plugin.analysis.statistics.contrasting_classes`.
        seed: The seed of the flips.
        show: Images at either end of a class, and of each ranking.
    """

    neighbours: Sequence[Sequence[int]] | None = None
    flips: Sequence[float] = ()
    classes: Sequence[int] | None = None
    seed: int = 0
    show: int = 5


@dataclass(frozen=True)
class Labeling:
    """Labels to evaluate the model on, [N], and whether each could have been flipped, booleans [N]."""

    labels: NDArray
    could_flip: NDArray


def labelings_of(subject: Subject, options: StudyOptions) -> dict[str, Labeling]:
    """The labels to evaluate the model on: the data set's, and the clean labels with flips.

    Raises:
        SetupError: If a rate is out of range, or flips too few labels.
    """
    found = {GIVEN: Labeling(subject.labels, subject.could_flip)}
    kinds = {'uniformly': None, **({'within A(x)': options.neighbours} if options.neighbours is not None else {})}
    for rate in options.flips:
        for kind, groups in kinds.items():
            flipped = flip_labels(subject.clean, len(subject.classes), rate, options.seed, groups)
            labeling = Labeling(flipped, flippable(subject.clean, groups))
            indicators.check_auditable((flipped != subject.clean)[labeling.could_flip])
            found[f'flipped {kind}, {rate:.0%}'] = labeling
    return found


def study(
    subject: Subject, policy: Policy, options: StudyOptions, advance: Callable[[int], None] = lambda count: None
) -> tuple[Columns, dict[str, Any]]:
    """Run the analysis in one pass over all images.

    Args:
        subject: The subject of the analysis.
        policy: The temperatures.
        options: The options.
        advance: Called with the number of images after each batch.

    Returns:
        The numbers of each image, see :func:`~fnkd_plugin.analysis.collect.collect`, and the results, which
        ``analysis.json`` holds.

    Raises:
        SetupError: If the options do not fit the subject.
    """
    labelings = labelings_of(subject, options)
    for c in options.classes or ():
        if c not in subject.clean:
            raise SetupError(f'analysis: --classes: no image of this split is of class {subject.classes[c]}.')
    labels = {name: labeling.labels for name, labeling in labelings.items()}
    columns = collect(subject, policy, labels, options.neighbours, advance)
    clean, norm = subject.clean, columns['norm']
    prefixes = {'model': '', 'teacher': 'teacher_'} if subject.teacher is not None else {'model': ''}
    right = {name: columns[f'{prefix}prediction'] == clean for name, prefix in prefixes.items()}
    wrong = ~right['model']
    scores = indicators.suspicion(columns, GIVEN)
    blind = {name: scores[name] for name in indicators.LABEL_BLIND}
    curves = {'loss': columns[f'loss/{GIVEN}'], 'entropy': columns['entropy']}
    if 'disagreement' in columns:
        curves['disagreement'] = columns['disagreement']
    numbers = dict(
        images=len(clean),
        classes=len(subject.classes),
        accuracy=float(right['model'].mean()),
        policy=asdict(policy),
        norms={
            name: {
                'right': statistics.summary(columns[f'{prefix}norm'][right[name]]),
                'wrong': statistics.summary(columns[f'{prefix}norm'][~right[name]]),
            }
            for name, prefix in prefixes.items()
            if f'{prefix}norm' in columns
        },
        error_detection=indicators.audit(blind, wrong)['indicators'] if indicators.is_auditable(wrong) else None,
        curves={name: _against(norm, values) for name, values in curves.items()},
        soft_labels=_soft_labels(columns, policy),
        confusions=_confusions(columns, clean, prefixes, options.neighbours),
        audits=_audits(subject, columns, labelings),
        ranking={name: np.argsort(-each, kind='stable')[: 2 * options.show].tolist() for name, each in scores.items()},
        class_rows=_class_rows(norm, clean, options),
    )
    numbers['compensations'] = compensation_cards(subject, policy, options.neighbours, _examples(columns))
    return columns, numbers


def _against(norm: NDArray, values: NDArray) -> dict[str, Any]:
    return dict(binned=statistics.binned(norm, values), **statistics.correlation(norm, values))


def _soft_labels(columns: Columns, policy: Policy) -> dict[str, Any]:
    norm = columns['source_norm']
    effective = norm / policy.tau
    names = ('kd_confidence', 'kd_entropy', 'fnkd_confidence', 'fnkd_entropy')
    return dict(
        source='teacher' if 'teacher_norm' in columns else 'model',
        curves={name: _against(norm, columns[name]) for name in names},
        # The authors' code does not rescale norms below tau: their temperature is 1.
        effective_temperature=dict(statistics.summary(effective), below_tau=float((effective < 1).mean())),
    )


def _confusions(
    columns: Columns, clean: NDArray, prefixes: dict[str, str], neighbours: Sequence[Sequence[int]] | None
) -> dict[str, Any]:
    prediction = columns.get('teacher_prediction', columns['prediction'])
    found: dict[str, Any] = dict(pairs=statistics.confused_pairs(prediction, clean))
    if neighbours is not None:
        for pair in found['pairs']:
            pair['near'] = pair['predicted'] in neighbours[pair['true']]
        found['near'] = {
            name: statistics.near_share(
                columns[f'{prefix}off_mass'],
                columns[f'{prefix}near_mass'],
                columns[f'{prefix}prediction'],
                clean,
                neighbours,
            )
            for name, prefix in prefixes.items()
        }
    return found


def _audits(subject: Subject, columns: Columns, labelings: dict[str, Labeling]) -> dict[str, Any]:
    found = {}
    for name, labeling in labelings.items():
        wrong, chosen = labeling.labels != subject.clean, labeling.could_flip
        if name == GIVEN and not wrong.any():
            continue  # the wrong labels of the data set are unknown
        # The other labels were flipped after training.
        useful = [key for key in indicators.INDICATORS if name == GIVEN or key not in indicators.LABEL_BLIND]
        scores = indicators.suspicion(columns, name)
        audited = indicators.audit({key: scores[key][chosen] for key in useful}, wrong[chosen])
        found[IN_DATA if name == GIVEN else name] = dict(audited, verdict=indicators.verdict(audited))
    return found


def _class_rows(norm: NDArray, clean: NDArray, options: StudyOptions) -> list[dict[str, Any]]:
    rows = []
    for c in options.classes or statistics.contrasting_classes(norm, clean, 3, options.show):
        members = np.flatnonzero(clean == c)
        small, large = statistics.extremes(norm, members, options.show)
        rows.append(dict(index=c, images=len(members), small=small, large=large))
    return rows


def _examples(columns: Columns) -> dict[int, str]:
    """The images whose compensations are shown, by the norm of the soft labels' source and by loss; with the reason."""
    source = 'teacher' if 'teacher_norm' in columns else 'model'
    order = np.argsort(columns['source_norm'], kind='stable').tolist()
    reasons: dict[int, str] = {}
    for index, why in (
        (order[0], f'smallest ‖f‖ of the {source}'),
        (order[len(order) // 2], f'median ‖f‖ of the {source}'),
        (order[-1], f'largest ‖f‖ of the {source}'),
        (int(columns[f'loss/{GIVEN}'].argmax()), 'largest loss of the model'),
    ):
        reasons.setdefault(index, why)
    return reasons
