"""``fnkd compare``: several methods and seeds on one folder of photos, as a table, a page and JSON."""

import json
import statistics
from dataclasses import asdict, dataclass

from scipy.stats import sem, t

from fnkd_plugin.cli.compare_page import page
from fnkd_plugin.cli.doctor import surroundings
from fnkd_plugin.cli.folder import Experiment, Teacher, Trained
from fnkd_plugin.cli.terminal import console, duration, print_table


@dataclass(frozen=True)
class Row:
    """A method's results per seed: accuracies in per cent, their differences to the first method's, and seconds."""

    method: str
    accuracies: list[float]
    differences: list[float]
    seconds: list[float]


def compare(experiment: Experiment, methods: list[str], seeds: int) -> list[Row]:
    """Train each method with each seed, by the same recipe; those of a seed see the same batches.

    Writes ``compare.html`` and ``compare.json`` beside the trainings.

    Args:
        experiment: Models, photos and settings.
        methods: ``plain``, ``lsr`` or distillation methods; the first is what the others are compared with.
        seeds: Trainings of each method.
    """
    out, recipe = experiment.out, experiment.recipe
    folder, student, teacher = recipe.photos.root.name, *(model.name for model in experiment.models.values())
    of_teacher = experiment.teacher()
    found: dict[str, list[Trained]] = {name: [] for name in methods}
    for seed in range(seeds):  # seed by seed, so that what is cut off compares all methods
        for name in found:
            found[name].append(experiment.student(name, of_teacher, seed))
    rows = _rows(found)
    lines = table(rows, of_teacher)
    print_table(lines[0], lines[1:])
    result = dict(
        folder=folder,
        classes=len(recipe.photos.classes),
        photos=dict(train=len(recipe.photos.train), val=len(recipe.photos.val)),
        recipe=dict(image_size=recipe.image_size, iterations=recipe.iterations, batch_size=recipe.batch_size),
        student=student,
        teacher=dict(model=teacher, accuracy=of_teacher.accuracy, seconds=of_teacher.seconds),
        methods=[asdict(row) for row in rows],
        **surroundings(),
    )
    (out / 'compare.json').write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    title = f'{folder}: {student} learns from {teacher}'
    about = (
        f'{recipe.photos.summary()}; {recipe.image_size} px, {recipe.iterations} iterations of {recipe.batch_size} '
        f'photos, {seeds} seeds.'
    )
    file = out / 'compare.html'
    accuracies = {row.method: row.accuracies for row in rows}
    file.write_text(page(title, about, lines, accuracies, of_teacher.accuracy), encoding='utf-8')
    console.print(f'page: {file}', markup=False)
    return rows


def table(rows: list[Row], teacher: Teacher) -> list[tuple[str, str, str, str]]:
    """Titles and rows: mean ± standard deviation over seeds, and paired differences ± their 95 % interval."""
    first = rows[0].method
    lines = [('method', 'top-1, %', f'over {first}', 'time per run')]
    for row in rows:
        difference = '' if row.method == first else gain(row.differences)
        lines.append((row.method, mean_std(row.accuracies), difference, duration(statistics.fmean(row.seconds))))
    return [*lines, ('teacher', f'{teacher.accuracy:.1f}', '', duration(teacher.seconds))]


def mean_std(values: list[float]) -> str:
    """Mean ± standard deviation; the mean of one value alone."""
    mean = f'{statistics.fmean(values):.1f}'
    return f'{mean} ± {statistics.stdev(values):.1f}' if len(values) > 1 else mean


def gain(differences: list[float]) -> str:
    """Mean ± half of its 95 % interval by Student's t; the mean of one value alone."""
    mean = f'{statistics.fmean(differences):+.1f}'
    if len(differences) == 1:
        return mean
    return f'{mean} ± {t.ppf(0.975, len(differences) - 1) * sem(differences):.1f}'


def _rows(found: dict[str, list[Trained]]) -> list[Row]:
    accuracies = {name: [one.accuracy for one in trained] for name, trained in found.items()}
    first = next(iter(accuracies.values()))
    return [
        Row(name, own, [a - b for a, b in zip(own, first, strict=True)], [one.seconds for one in found[name]])
        for name, own in accuracies.items()
    ]
