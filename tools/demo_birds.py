"""The demo on photos: ten birds of CUB-200-2010, by the recipe of ``fnkd train FOLDER``.

Birds of many families, which 40 iterations can tell apart. On ten similar warblers so short a training gave 30.5 %
plain and 27.2 % with FNKD (three seeds), so this is a demonstration, not evidence (docs/results.md has that).
"""

import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from demo_picture import draw
from experiments.job import feature_norms

CLASSES, PIXELS, ITERATIONS, SEEDS = 10, 64, 40, 2  # two minutes on two cores
STUDENT, TEACHER = 'tf_efficientnet_lite0', 'tf_efficientnet_lite2'


def wanted() -> bool:
    """Whether ``FNKD_DATA`` and ``FNKD_WEIGHTS`` name folders."""
    return bool(os.environ.get('FNKD_DATA') and os.environ.get('FNKD_WEIGHTS'))


def missing() -> list[Path]:
    """The files of photos and of both models' weights that those folders lack."""
    files = _photos() / 'images.tar', _weights(STUDENT), _weights(TEACHER)
    return [path for path in files if not path.is_file()]


def run(out: Path, seeds: int | None) -> dict[str, Path]:
    """Fine-tune the teacher, train plain and FNKD students, and draw the picture; returns the files by title."""
    from fnkd_plugin.cli.compare import compare
    from fnkd_plugin.cli.folder import Experiment, Model

    # Not in ``out``, which may be inside the checkout.
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / 'birds'
        unpack(_photos(), photos)
        models = (Model(name, str(_weights(name))) for name in (STUDENT, TEACHER))
        rows = compare(Experiment(photos, out, *models, PIXELS, ITERATIONS), ['plain', 'fnkd'], seeds or SEEDS)
        teacher = out / 'teacher'
        norms = feature_norms(out / 'teacher.py', Path((teacher / 'last_checkpoint').read_text()))
    found = dict(zip(('plain', 'FNKD'), (row.accuracies for row in rows), strict=True))
    picture = out / 'demo.png'
    right = norms['right']
    draw(picture, 'Ten birds', found, 100 * sum(right) / len(right), norms)
    return {'picture': picture, 'table as a page': out / 'compare.html', "FNKD student's training": out / 'fnkd'}


def unpack(source: Path, photos: Path) -> None:
    """Write ``photos/train/CLASS/*.jpg`` and ``photos/val/CLASS/*.jpg`` of ten classes."""
    names = [line.rsplit(' ', 1)[0].split('/')[0] for line in (source / 'train.txt').read_text().splitlines()]
    classes = sorted(set(names))
    chosen = set(classes[:: max(1, len(classes) // CLASSES)])  # of many families
    with tarfile.open(source / 'images.tar') as archive:
        for part, file in (('train', 'train.txt'), ('val', 'test.txt')):
            paths = [line.rsplit(' ', 1)[0] for line in (source / file).read_text().splitlines()]
            for path in paths:
                if path.split('/')[0] in chosen:
                    target = photos / part / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    member: Any = archive.extractfile(f'images/{path}')
                    target.write_bytes(member.read())


def _photos() -> Path:
    return Path(os.environ['FNKD_DATA'], 'cub200_2010')


def _weights(model: str) -> Path:
    return Path(os.environ['FNKD_WEIGHTS'], f'{model}.fp16.safetensors')
