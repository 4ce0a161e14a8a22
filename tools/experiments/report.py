"""Tables of results: means, standard deviations, and paired differences with their intervals."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.table import Table as RichTable
from scipy.stats import t as student_t

from experiments.readme import markdown
from experiments.study import Study
from experiments.tables import Method


def columns(study: Study) -> list[str]:
    """The headings of :func:`rows`."""
    first = study.table.methods[0].title
    measures = ('NLL', 'ECE, %', 'agreement')
    return ['method', 'top-1, %', f'over {first}', 'over KD', 'best epoch, %', *measures, 'chosen values']


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def paired_difference(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float, float]:
    """Mean difference over the common seeds, and half of its 95 % interval by Student's t, NaN for one seed."""
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not differences:
        return math.nan, math.nan
    spread = deviation(differences)
    if spread is None:
        return differences[0], math.nan
    count = len(differences)
    return statistics.mean(differences), float(student_t.ppf(0.975, count - 1)) * spread / math.sqrt(count)


def rows(study: Study) -> list[list[str]]:
    """A row for each method with results, and one for the teacher, as text cells under :func:`columns`."""
    accuracies = {m.title: _accuracies(study, m) for m in study.table.methods}
    found = []
    for method in study.table.methods:
        entries = study.final_results(method)
        if not entries:
            continue
        mine = accuracies[method.title]
        against = [
            '' if method.title == other else _interval(*paired_difference(mine, accuracies.get(other, {})))
            for other in (study.table.methods[0].title, 'KD')
        ]
        measures = [_spread(entries, name, digits) for name, digits in (('nll', 2), ('ece', 1), ('agreement', 1))]
        chosen = method.chosen(study.best_trial(method))
        best = _spread(entries, 'best_accuracy', 1)
        found.append([method.title, _spread(entries, 'accuracy', 1), *against, best, *measures, chosen])
    teacher = study.results.runs.get(study.teacher.name)
    if teacher is not None:
        measures = [f'{teacher["nll"]:.2f}', f'{teacher["ece"]:.1f}', '']
        best = f'{teacher["best_accuracy"]:.1f}' if 'best_accuracy' in teacher else ''
        found.append(['teacher', f'{teacher["accuracy"]:.1f}', '', '', best, *measures, ''])
    return found


def as_rich(study: Study) -> RichTable:
    """For the terminal."""
    found = rows(study)
    # The chosen values go into the caption, so that the numbers fit a terminal of 80 columns.
    chosen = '\n'.join(f'{row[0]}: {row[-1]}' for row in found if row[-1])
    table = RichTable(
        title=study.table.title,
        caption=f'Chosen values\n{chosen}' if chosen else None,
        title_justify='left',
        caption_justify='left',
        box=SIMPLE_HEAVY,
        padding=0,
        pad_edge=False,
    )
    heads = columns(study)[:-1]
    kept = _filled(found, len(heads))
    for i in kept:
        table.add_column(heads[i], justify='right' if i else 'left', no_wrap=bool(i))
    for row in found:
        if row[0] == 'teacher':
            table.add_section()
        table.add_row(*(row[i] for i in kept))
    return table


def as_markdown(study: Study) -> str:
    """For README.md and docs/, without empty columns."""
    body = rows(study)
    heads = columns(study)
    kept = _filled(body, len(heads))
    cells = [[row[i] for i in kept] for row in body]
    align = ''.join('l' if i in (0, len(heads) - 1) else 'r' for i in kept)
    counts = sorted({len(study.final_results(m)) for m in study.table.methods} - {0})
    seeds = ' to '.join(map(str, counts[:1] + counts[1:][-1:])) or 'no'
    seeds += ' seed' if counts == [1] else ' seeds' if counts else ' seed tested yet'
    trials = len(study.table.methods[0].trials)
    head = f'**{study.table.title}**; {seeds}, {f"{trials} trials per method" if trials > 1 else "nothing is tuned"}.'
    note = f' {study.table.note}' if study.table.note else ''
    return f'{head}{note}\n\n{markdown([heads[i] for i in kept], cells, align)}'


def _filled(body: list[list[str]], count: int) -> list[int]:
    """The indices of the first column and of all that are not empty."""
    return [i for i in range(count) if i == 0 or any(row[i] for row in body)]


def _accuracies(study: Study, method: Method) -> dict[int, float]:
    return {entry['seed']: entry['accuracy'] for entry in study.final_results(method)}


def _spread(entries: list[dict[str, Any]], name: str, digits: int) -> str:
    values = [entry[name] for entry in entries if name in entry]
    if not values:
        return ''
    spread = deviation(values)
    mean = f'{statistics.mean(values):.{digits}f}'
    return mean if spread is None else f'{mean} ± {spread:.{digits}f}'


def _interval(difference: float, half: float) -> str:
    if math.isnan(difference):
        return ''
    return f'{difference:+.1f}' + ('' if math.isnan(half) else f' ± {half:.1f}')
