"""Computes all results of an analysis from its subject."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fnkd_plugin.analysis import statistics
from fnkd_plugin.analysis.collect import Columns, Policy, collect
from fnkd_plugin.analysis.compensations import compensations, side_by_side
from fnkd_plugin.analysis.indicators import INDICATORS, LABEL_BLIND, audit, check_auditable, suspicion, verdict
from fnkd_plugin.analysis.subject import Subject
from fnkd_plugin.analysis.thumbnails import Shown, fetch
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

    labels: np.ndarray
    could_flip: np.ndarray


@dataclass(frozen=True)
class Study:
    """Per-image numbers (columns), results (numbers), and the images to show by index."""

    columns: Columns
    numbers: dict[str, Any]
    shown: dict[int, Shown] = field(default_factory=dict)


def labelings_of(subject: Subject, options: StudyOptions) -> dict[str, Labeling]:
    """The labels to evaluate the model on: the data set's, and the clean labels with flips.

    Raises:
        SetupError: If a rate is out of range, or flips too few labels.
    """
    count, near = len(subject.classes), options.neighbours
    found = {GIVEN: Labeling(subject.labels, subject.could_flip)}
    kinds = {'uniformly': None} if near is None else {'uniformly': None, 'within A(x)': near}
    for rate in options.flips:
        for kind, groups in kinds.items():
            flipped = flip_labels(subject.clean, count, rate, options.seed, groups)
            labeling = Labeling(flipped, flippable(subject.clean, groups))
            check_auditable((flipped != subject.clean)[labeling.could_flip])
            found[f'flipped {kind}, {rate:.0%}'] = labeling
    return found


def study(
    subject: Subject, policy: Policy, options: StudyOptions, advance: Callable[[int], None] = lambda count: None
) -> Study:
    """Run the analysis: one pass over all images, then a second over those to show.

    Args:
        subject: The subject of the analysis.
        policy: The temperatures.
        options: The options.
        advance: Called with the number of images after each batch.

    Raises:
        SetupError: If the options do not fit the subject.
    """
    labelings = labelings_of(subject, options)
    for c in options.classes or ():
        if c not in subject.clean:
            raise SetupError(f'analysis: --classes: no image of this split is of class {subject.classes[c]}.')
    labels = {name: labeling.labels for name, labeling in labelings.items()}
    columns = collect(subject, policy, labels, options.neighbours, advance)
    right = columns['prediction'] == subject.clean
    numbers: dict[str, Any] = dict(
        images=len(subject.labels),
        classes=len(subject.classes),
        accuracy=float(right.mean()),
        policy=dict(temperature=policy.temperature, tau=policy.tau, mode=policy.mode),
        norms=_norms(subject, columns),
        error_detection=statistics.error_detection(columns, right),
        curves=_curves(columns),
        soft_labels=_soft_labels(columns, policy),
        confusions=_confusions(subject, columns, options),
        audits=_audits(subject, columns, labelings),
        ranking=_ranking(columns, options.show * 2),
    )
    rows = _class_rows(subject, columns, options)
    samples = _samples(columns, numbers['soft_labels']['source'])
    ranked = [index for ranking in numbers['ranking'].values() for index in ranking]
    shown = fetch(subject, [*ranked, *samples.values(), *(i for row in rows for i in row['small'] + row['large'])])
    numbers['class_rows'] = rows
    numbers['compensations'] = [
        dict(
            why=why,
            image=index,
            norm=float(columns['source_norm'][index]),
            **side_by_side(
                compensations(shown[index], int(subject.clean[index]), policy, options.neighbours),
                int(subject.clean[index]),
            ),
        )
        for why, index in samples.items()
    ]
    return Study(columns, numbers, shown)


def _prefixes(columns: Columns) -> dict[str, str]:
    """The prefixes of the columns of the model, and of the teacher if there is one."""
    return {'model': '', 'teacher': 'teacher_'} if 'teacher_prediction' in columns else {'model': ''}


def _norms(subject: Subject, columns: Columns) -> dict[str, Any]:
    return {
        name: statistics.outcome(columns[f'{prefix}norm'], columns[f'{prefix}prediction'] == subject.clean)
        for name, prefix in _prefixes(columns).items()
        if f'{prefix}norm' in columns
    }


def _curves(columns: Columns) -> dict[str, Any]:
    found = {'loss': columns[f'loss/{GIVEN}'], 'entropy': columns['entropy']}
    if 'disagreement' in columns:
        found['disagreement'] = columns['disagreement']
    norm = columns['norm']
    return {
        name: dict(binned=statistics.binned(norm, values), **statistics.correlation(norm, values))
        for name, values in found.items()
    }


def _soft_labels(columns: Columns, policy: Policy) -> dict[str, Any]:
    norm = columns['source_norm']
    effective = norm / policy.tau
    found: dict[str, Any] = {
        name: dict(
            mean=float(columns[name].mean()),
            binned=statistics.binned(norm, columns[name]),
            **statistics.correlation(norm, columns[name]),
        )
        for name in ('kd_confidence', 'kd_entropy', 'fnkd_confidence', 'fnkd_entropy')
    }
    found['source'] = 'teacher' if 'teacher_norm' in columns else 'model'
    found['effective_temperature'] = dict(
        mean=float(effective.mean()),
        std=float(effective.std()),
        **{f'q{q:02d}': float(np.quantile(effective, q / 100)) for q in (5, 25, 50, 75, 95)},
        # The authors' code does not rescale norms below tau: their temperature is 1.
        below_tau=float((effective < 1).mean()),
    )
    return found


def _confusions(subject: Subject, columns: Columns, options: StudyOptions) -> dict[str, Any]:
    source = _prefixes(columns).get('teacher', '')
    found: dict[str, Any] = dict(pairs=statistics.confused_pairs(columns[f'{source}prediction'], subject.clean))
    if options.neighbours is not None:
        for pair in found['pairs']:
            pair['near'] = pair['predicted'] in options.neighbours[pair['true']]
        found['near'] = {
            name: statistics.near_share(
                columns[f'{prefix}off_mass'],
                columns[f'{prefix}near_mass'],
                columns[f'{prefix}prediction'],
                subject.clean,
                options.neighbours,
            )
            for name, prefix in _prefixes(columns).items()
        }
    return found


def _audits(subject: Subject, columns: Columns, labelings: dict[str, Labeling]) -> dict[str, Any]:
    found = {}
    for name, labeling in labelings.items():
        wrong, chosen = labeling.labels != subject.clean, labeling.could_flip
        if name == GIVEN and not wrong.any():
            continue  # the wrong labels of the data set are unknown
        # The other labels were flipped after training.
        useful = [key for key in INDICATORS if name == GIVEN or key not in LABEL_BLIND]
        scores = suspicion(columns, name)
        audited = audit({key: scores[key][chosen] for key in useful}, wrong[chosen])
        found[IN_DATA if name == GIVEN else name] = dict(audited, verdict=verdict(audited))
    return found


def _ranking(columns: Columns, top: int) -> dict[str, list[int]]:
    scores = suspicion(columns, GIVEN)
    return {name: np.argsort(-scores[name], kind='stable')[:top].tolist() for name in INDICATORS}


def _class_rows(subject: Subject, columns: Columns, options: StudyOptions) -> list[dict[str, Any]]:
    norm, classes = columns['norm'], subject.clean
    chosen = options.classes
    if chosen is None:
        chosen = statistics.contrasting_classes(norm, classes, 3, options.show)
    rows = []
    for c in chosen:
        members = np.flatnonzero(classes == c)
        small, large = statistics.extremes(norm, members, options.show)
        rows.append(dict(index=int(c), images=len(members), small=small, large=large))
    return rows


def _samples(columns: Columns, source: str) -> dict[str, int]:
    """The images whose compensations are shown: by the norm of the soft labels' source, and by loss."""
    order = np.argsort(columns['source_norm'], kind='stable')
    chosen = {
        f'smallest ‖f‖ of the {source}': int(order[0]),
        f'median ‖f‖ of the {source}': int(order[len(order) // 2]),
        f'largest ‖f‖ of the {source}': int(order[-1]),
        'largest loss of the model': int(columns[f'loss/{GIVEN}'].argmax()),
    }
    unique = {index: why for why, index in reversed(chosen.items())}
    return {why: index for why, index in chosen.items() if unique[index] == why}
