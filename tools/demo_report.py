"""What the demo leaves behind: a table, a picture, a JSON file and the FNKD student."""

import importlib.metadata
import json
import platform
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo_methods import METHODS, deviation
from demo_picture import draw
from rich.box import SIMPLE_HEAVY
from rich.table import Table

if TYPE_CHECKING:
    from demo import Demo


def table_of(demo: 'Demo') -> Table:
    """The comparison."""
    table = Table(title='Test accuracy of the student, %', title_justify='left', box=SIMPLE_HEAVY)
    table.add_column('method')
    for name in ('mean ± std', 'over plain', 'each seed', 'lr', 'soft weight'):
        table.add_column(name, justify='right', no_wrap=True)
    plain = statistics.mean(demo.finals(METHODS[0]))
    for method in METHODS:
        accuracies, best = demo.finals(method), demo.best_trial(method)
        mean, spread = statistics.mean(accuracies), deviation(accuracies)
        table.add_row(
            method.title,
            f'{mean:.1f}' if spread is None else f'{mean:.1f} ± {spread:.1f}',
            '' if method is METHODS[0] else f'{mean - plain:+.1f}',
            ' '.join(f'{a:.1f}' for a in accuracies),
            f'{best["lr"]:.3g}',
            f'{method.weight_name} = {best["weight"]:.3g}' if method.weight_name else '',
        )
    table.add_section()
    table.add_row('teacher', f'{demo.result("teacher")["accuracy"]:.1f}', '', '', '', '')
    return table


def surroundings() -> dict[str, Any]:
    """Versions and machine."""
    names = ('torch', 'mmengine', 'mmpretrain', 'onedl-mmengine', 'onedl-mmpretrain', 'scikit-learn')
    installed = {d.metadata['Name'].lower(): d.version for d in importlib.metadata.distributions()}
    return dict(
        versions=dict(python=platform.python_version(), **{n: installed[n] for n in names if n in installed}),
        machine=dict(system=platform.platform(), processor=_processor()),
    )


def _processor() -> str:
    # platform.processor() is empty on most Linux systems.
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return f'{len(names)} x {names[0]}' if names else platform.processor()


def write_results(demo: 'Demo', seconds: float, workers: int) -> dict[str, Path]:
    """Write all files; what they are, by title."""
    files = {
        'picture': demo.out / 'demo.png',
        'results': demo.out / 'results.json',
        "FNKD student's checkpoint": demo.out / 'fnkd_student.pth',
        'its plain config': demo.out / 'fnkd_student.py',
        'all trainings': demo.out / 'runs',
    }
    finals = {m.title: demo.finals(m) for m in METHODS}
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = dict(
        **surroundings(),
        workers=workers,
        seconds=round(seconds, 1),
        cpu_seconds=round(time.process_time() + children.ru_utime + children.ru_stime, 1),
        seeds=list(demo.seeds),
        search_seed=demo.search_seed,
        test_accuracy=finals,
        chosen={m.title: {k: demo.best_trial(m)[k] for k in ('lr', 'weight', 'accuracy')} for m in METHODS},
        runs=demo.results,
    )
    files['results'].write_text(json.dumps(report, indent=2))
    student = demo.result('fnkd_seed0')
    shutil.copy(student['checkpoint'], files["FNKD student's checkpoint"])
    shutil.copy(demo.out / 'runs' / 'fnkd_seed0' / 'plain_fnkd_digits.py', files['its plain config'])
    draw(files['picture'], finals, demo.result('teacher')['accuracy'], demo.norms)
    return files
