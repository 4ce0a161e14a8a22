"""The ``fnkd`` command. Only Typer is imported until a command runs: ``fnkd --help`` answers at once."""

import contextlib
import importlib
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help='Train small image classifiers that learn from big ones.',
    context_settings=dict(help_option_names=['-h', '--help']),
)

Folder = Annotated[
    Path, typer.Argument(help='FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg, or FOLDER/CLASS/*.jpg')
]


Size = Annotated[int | None, typer.Option('--image-size', help="pixels a side (the model's; at most 128 on a CPU)")]
Epochs = Annotated[int | None, typer.Option(help='epochs of each training (by the number of photos)')]
Student = Annotated[str, typer.Option(help="timm's name of the student")]
Teacher = Annotated[str, typer.Option(help="timm's name of the teacher")]
StudentWeights = Annotated[
    str | None, typer.Option('--student-checkpoint', help="weights to start from (timm's published ones)")
]
TeacherWeights = Annotated[
    str | None, typer.Option('--teacher-checkpoint', help="weights to start from (timm's published ones)")
]
Out = Annotated[Path | None, typer.Option(help='folder of the results (work_dirs/FOLDER_STUDENT)')]


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


@app.command()
def compare(
    folder: Folder,
    student: Student,
    teacher: Teacher,
    methods: Annotated[list[str], typer.Option(help='such as: --methods plain kd fnkd; the first is compared with')] = [  # noqa: B006
        'plain',
        'kd',
        'fnkd',
    ],
    seeds: Annotated[int, typer.Option(min=1, help='trainings of each method')] = 3,
    student_checkpoint: StudentWeights = None,
    teacher_checkpoint: TeacherWeights = None,
    image_size: Size = None,
    epochs: Epochs = None,
    out: Out = None,
) -> None:
    """Compare methods on a folder of photos: one table, one page."""
    _load('compare').compare(
        folder,
        student,
        teacher,
        methods,
        seeds,
        out or Path('work_dirs') / f'compare_{folder.resolve().name}_{student}',
        student_checkpoint=student_checkpoint,
        teacher_checkpoint=teacher_checkpoint,
        image_size=image_size,
        epochs=epochs,
    )


Model = Annotated[Path, typer.Argument(help='the .safetensors file that fnkd train wrote, or its folder')]


@app.command()
def predict(
    model: Model,
    photos: Annotated[list[Path], typer.Argument(help='image files')],
    as_json: Annotated[bool, typer.Option('--json', help='JSON instead of a table')] = False,
) -> None:
    """Classify photos."""
    found = _load('bundle').predict(model, photos)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    width = max(len(row['photo']) for row in found)
    for row in found:
        print(f'{row["photo"]:<{width}}  ' + '  '.join(f'{name} {100 * p:.1f} %' for name, p in row['classes'].items()))


@app.command()
def export(model: Model, out: Annotated[Path, typer.Argument(help='the .onnx file')]) -> None:
    """Write a trained student as ONNX, checked against PyTorch."""
    error = _load('bundle').export(model, out)
    print(f'{out}: logits equal PyTorch to {error:.1e} of the largest')


@app.command()
def doctor() -> None:
    """Show what is installed, what is missing, and the command that fixes it."""
    rows, missing = _load('doctor').report()
    width = max(len(name) for name, _ in rows)
    for name, found in rows:
        print(f'{name:<{width}}  {found}')
    print('\n'.join(missing) if missing else 'Nothing is missing.')


def _load(module: str) -> Any:
    """A module of fnkd_plugin.cli, without what OpenMMLab prints while it is imported."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return importlib.import_module(f'fnkd_plugin.cli.{module}')


def _one_value_each(arguments: list[str], option: str) -> list[str]:
    """``--methods a b`` as ``--methods a --methods b``, which Typer reads."""
    found, inside = [], False
    for argument in arguments:
        if argument.startswith('-'):
            inside = argument == option
            found += [] if inside else [argument]
        else:
            found += [option, argument] if inside else [argument]
    return found


def main() -> None:
    """Run a command; an error is one sentence."""
    arguments = sys.argv[1:]
    if arguments[:1] == ['train'] and any(name.endswith('.py') or '::' in name for name in arguments[1:2]):
        sys.exit(_load('train').main(arguments[1:]))
    try:
        app(_one_value_each(arguments, '--methods'))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if type(error).__name__ in ('SetupError', 'UnreadableCheckpointError'):
            sys.exit(f'error: {error}')
        raise


if __name__ == '__main__':
    main()
