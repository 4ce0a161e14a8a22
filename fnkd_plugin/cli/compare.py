"""``fnkd compare``: several methods and seeds on one folder of photos, as a table and a page."""

import base64
import html
import io
import statistics
from dataclasses import dataclass
from pathlib import Path

from fnkd_plugin.cli.folder import Trained, check_methods, open_folder
from fnkd_plugin.cli.terminal import console


@dataclass(frozen=True)
class Row:
    """A method's accuracies of the last epoch, one a seed, in per cent; paired differences to the first method."""

    method: str
    accuracies: list[float]
    differences: list[float]


def compare(
    root: Path,
    student: str,
    teacher: str,
    methods: list[str],
    seeds: int,
    out: Path,
    *,
    student_checkpoint: str | None = None,
    teacher_checkpoint: str | None = None,
    image_size: int | None = None,
    epochs: int | None = None,
) -> list[Row]:
    """Train each method with each seed; every method has the same trials of learning rates.

    Args:
        root: The photos.
        student: timm's name.
        teacher: timm's name.
        methods: ``plain``, ``lsr`` or distillation methods; the first is what the others are compared with.
        seeds: Trainings of each method.
        out: Where results go.
        student_checkpoint: As of :func:`~fnkd_plugin.cli.folder.train_folder`.
        teacher_checkpoint: As of :func:`~fnkd_plugin.cli.folder.train_folder`.
        image_size: Pixels a side.
        epochs: Of each training.

    Raises:
        SetupError: If a method is unknown, or the photos do not do.
    """
    check_methods('--methods', methods)
    shop = open_folder(root, out, student, teacher, image_size, epochs)
    shop.check_models(student=(student, student_checkpoint), teacher=(teacher, teacher_checkpoint))
    of_teacher = shop.finetuned(teacher, teacher_checkpoint)
    config = dict(type='TimmTeacher', model=teacher, checkpoint=str(of_teacher.checkpoint.absolute()))
    found: dict[str, list[Trained]] = {name: [] for name in methods}
    for seed in range(seeds):  # seed by seed, so that what is cut off compares all methods
        for name in methods:
            found[name].append(shop.student(name, student, student_checkpoint, config, seed))
    first = [trained.last for trained in found[methods[0]]]
    rows = []
    for name, trained in found.items():
        accuracies = [one.last for one in trained]
        rows.append(Row(name, accuracies, [a - b for a, b in zip(accuracies, first, strict=True)]))
    lines = table(rows, of_teacher)
    console.print('\n'.join(lines), markup=False)
    page = out / 'compare.html'
    page.write_text(_page(f'{root}: {student} learns from {teacher}', lines, rows, of_teacher), encoding='utf-8')
    console.print(f'page: {page}', markup=False)
    return rows


def table(rows: list[Row], teacher: Trained) -> list[str]:
    """Lines of the table: mean ± standard deviation over seeds, and paired differences to the first method."""
    first = rows[0].method
    lines = [f'{"method":<12}{"top-1, %":>14}{"over " + first:>18}']
    for row in rows:
        difference = '' if row.method == first else _mean_std(row.differences, '+')
        lines.append(f'{row.method:<12}{_mean_std(row.accuracies):>14}{difference:>18}')
    lines.append(f'{"teacher":<12}{teacher.last:>9.1f}')
    return lines


def _mean_std(values: list[float], sign: str = '') -> str:
    mean = format(statistics.fmean(values), f'{sign}.1f')
    return f'{mean} ± {statistics.stdev(values):.1f}' if len(values) > 1 else mean


def _page(title: str, lines: list[str], rows: list[Row], teacher: Trained) -> str:
    picture = base64.b64encode(_chart(rows, teacher)).decode()
    text = html.escape('\n'.join(lines))
    note = 'Accuracy of the last epoch on the validation photos; bars are means over seeds, dots single seeds.'
    return (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<body style="font:16px/1.5 system-ui;max-width:52rem;margin:2rem auto;padding:0 1rem">'
        f'<h1 style="font-size:1.4rem">{html.escape(title)}</h1>'
        f'<img alt="accuracy by method" style="max-width:100%" src="data:image/png;base64,{picture}">'
        f'<p>{note}</p><pre>{text}</pre>'
    )


def _chart(rows: list[Row], teacher: Trained) -> bytes:
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 0.8 + 0.5 * len(rows)), layout='constrained')
    names = [row.method for row in rows]
    axis.barh(names, [statistics.fmean(row.accuracies) for row in rows], color='#7aa6c2', height=0.6)
    for place, row in enumerate(rows):
        axis.plot(row.accuracies, [place] * len(row.accuracies), 'o', color='#1f3b4d', ms=5)
    axis.axvline(teacher.last, color='#b5542b', ls='--', lw=1.5)
    axis.annotate('teacher', (teacher.last, -0.7), color='#b5542b', ha='center', annotation_clip=False)
    values = [a for row in rows for a in row.accuracies] + [teacher.last]
    axis.set_xlim(max(0, min(values) - 5), min(100, max(values) + 2))
    axis.set_xlabel('top-1, %')
    axis.invert_yaxis()
    axis.spines[['top', 'right']].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    plt.close(figure)
    return buffer.getvalue()
