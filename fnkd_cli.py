"""The ``fnkd`` command. Only Typer is imported until a command runs: ``fnkd --help`` answers at once."""

import contextlib
import importlib
import io
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help='Train small image classifiers that learn from big ones.',
    context_settings=dict(help_option_names=['-h', '--help']),
)

Folder = Annotated[Path, typer.Argument(help='FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg, or FOLDER/CLASS/*.jpg')]


Size = Annotated[Optional[int], typer.Option('--image-size', help='pixels a side (the model\'s; at most 128 on a CPU)')]
Epochs = Annotated[Optional[int], typer.Option(help='epochs of each training (by the number of photos)')]
Student = Annotated[str, typer.Option(help="timm's name of the student")]
Teacher = Annotated[str, typer.Option(help="timm's name of the teacher")]
StudentWeights = Annotated[
    Optional[str], typer.Option('--student-checkpoint', help="weights to start from (timm's published ones)")
]
TeacherWeights = Annotated[
    Optional[str], typer.Option('--teacher-checkpoint', help="weights to start from (timm's published ones)")
]
Out = Annotated[Optional[Path], typer.Option(help='folder of the results (work_dirs/FOLDER_STUDENT)')]


@app.command()
def train(
    folder: Folder,
    student: Student,
    teacher: Teacher,
    student_checkpoint: StudentWeights = None,
    teacher_checkpoint: TeacherWeights = None,
    method: Annotated[str, typer.Option(help='fnkd, kd, lskd, dkd, ... or plain')] = 'fnkd',
    image_size: Size = None,
    epochs: Epochs = None,
    baseline: Annotated[bool, typer.Option('--baseline', help='train the plain student, too')] = False,
    out: Out = None,
) -> None:
    """Fine-tune a teacher on a folder of photos, and train a small student with it.

    With a config in place of the folder, all flags are those of tools/train.py: fnkd train CONFIG.py --help.
    """
    _load('folder').train_folder(
        folder,
        student,
        teacher,
        out or Path('work_dirs') / f'{folder.resolve().name}_{student}',
        student_checkpoint=student_checkpoint,
        teacher_checkpoint=teacher_checkpoint,
        method=method,
        image_size=image_size,
        epochs=epochs,
        baseline=baseline,
    )


@app.command()
def check(folder: Folder) -> None:
    """Check a folder of photos: classes, counts, photos that cannot be read, duplicates."""
    _load('folder').checked(folder)


def _load(module: str) -> Any:
    """A module of fnkd_plugin.cli, without what OpenMMLab prints while it is imported."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return importlib.import_module(f'fnkd_plugin.cli.{module}')


def main() -> None:
    """Run a command; an error is one sentence."""
    sys.stdout.reconfigure(line_buffering=True)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if type(error).__name__ in ('SetupError', 'UnreadableCheckpointError'):
            sys.exit(f'error: {error}')
        raise


if __name__ == '__main__':
    main()
