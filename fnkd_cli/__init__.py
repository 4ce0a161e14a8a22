"""The ``fnkd`` command. Only Typer is imported until a command runs: ``fnkd --help`` answers at once."""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fnkd_cli.arguments import PARSERS, did_you_mean, presets

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
Size = Annotated[
    int | None, typer.Option('--image-size', min=8, help="side length in pixels (the model's; at most 128 on a CPU)")
]
Iterations = Annotated[
    int | None, typer.Option(min=1, help='of a student, two thirds of them for the teacher (by the number of photos)')
]
Student = Annotated[str, typer.Option(help="timm's name of the student")]
Teacher = Annotated[str, typer.Option(help="timm's name of the teacher")]
StudentWeights = Annotated[
    str | None, typer.Option('--student-checkpoint', help="weights to start from (timm's published ones)")
]
TeacherWeights = Annotated[
    str | None,
    typer.Option(
        '--teacher-checkpoint',
        help="weights of the folder's classes, used as they are, or of others, fine-tuned (timm's published ones)",
    ),
]


def _known(methods: str | list[str]) -> str | list[str]:
    """Refuse a method that does not exist."""
    known = ('plain', 'lsr', *presets('DistillHead'))
    for name in [methods] if isinstance(methods, str) else methods:
        if name not in known:
            raise typer.BadParameter(f'unknown method {name!r}{did_you_mean(name, known)}')
    return methods


Out = Annotated[Path | None, typer.Option(help='folder of the results (one below work_dirs)')]


@app.command()
def train(
    folder: Folder,
    student: Student,
    teacher: Teacher,
    student_checkpoint: StudentWeights = None,
    teacher_checkpoint: TeacherWeights = None,
    method: Annotated[str, typer.Option(callback=_known, help='fnkd, kd, dkd, ... or plain')] = 'fnkd',
    image_size: Size = None,
    iterations: Iterations = None,
    baseline: Annotated[bool, typer.Option('--baseline', help='train the plain student, too')] = False,
    out: Out = None,
) -> None:
    """Fine-tune a teacher on a folder of photos, and train a small student with it; or train a config.

    With a config in place of the folder, other flags apply: fnkd train CONFIG.py --help.
    """
    out = out or Path('work_dirs') / f'{folder.resolve().name}_{student}'
    models = (student, student_checkpoint), (teacher, teacher_checkpoint)
    _load('folder').train_folder(_experiment(folder, out, *models, image_size, iterations), method, baseline)


def _experiment(folder: Path, out: Path, student: tuple, teacher: tuple, *settings: int | None) -> Any:
    work = _load('folder')
    return work.Experiment(folder, out, work.Model(*student), work.Model(*teacher), *settings)


@app.command()
def check(folder: Folder) -> None:
    """Check a folder of photos: classes, counts, photos that cannot be read, duplicates.

    Exit code 0 if fnkd train takes the folder, else 1.
    """
    found = _load('folder').checked(folder)
    count = len(found.train) + len(found.val)
    if found.notes:
        print(f'{count} photos of {len(found.classes)} classes can be used; see the notes above.')
    else:
        print(f'OK: all {count} photos of {len(found.classes)} classes can be read, without duplicates.')


@app.command()
def compare(
    folder: Folder,
    student: Student,
    teacher: Teacher,
    methods: Annotated[
        list[str], typer.Option(callback=_known, help='such as: --methods plain kd fnkd; the first is compared with')
    ] = ['plain', 'kd', 'fnkd'],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help='trainings of each method')] = 3,
    student_checkpoint: StudentWeights = None,
    teacher_checkpoint: TeacherWeights = None,
    image_size: Size = None,
    iterations: Iterations = None,
    out: Out = None,
) -> None:
    """Compare methods on a folder of photos: one table, one page."""
    out = out or Path('work_dirs') / f'compare_{folder.resolve().name}_{student}'
    models = (student, student_checkpoint), (teacher, teacher_checkpoint)
    _load('compare').compare(_experiment(folder, out, *models, image_size, iterations), methods, seeds)


Model = Annotated[Path, typer.Argument(help='the .safetensors file that fnkd train wrote, or its folder')]


@app.command()
def predict(
    model: Model,
    photos: Annotated[list[Path], typer.Argument(help='image files')],
    as_json: Annotated[bool, typer.Option('--json', help='JSON instead of a table')] = False,
) -> None:
    """Classify photos."""
    width = max(len(str(photo)) for photo in photos)
    rows = []
    for row in _load('bundle').predict(model, photos):
        rows.append(row)
        if 'error' in row:
            _complain(row['error'], 1)
        elif not as_json:
            named = '  '.join(f'{name} {100 * p:.1f} %' for name, p in row['classes'].items())
            print(f'{row["photo"]:<{width}}  {named}', flush=True)
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    raise typer.Exit(int(any('error' in row for row in rows)))


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


_PASSED_ON = dict(allow_extra_args=True, ignore_unknown_options=True)


def _add_command_for_configs(name: str) -> None:
    about = (PARSERS[name](None).description or '').partition('\n\n')[0]

    @app.command(name, help=about, context_settings=_PASSED_ON, add_help_option=False)
    def _(context: typer.Context) -> None:
        run(name, context.args)


for _name in ('test', 'cache', 'analyze', 'publish'):
    _add_command_for_configs(_name)


def run(command: str, arguments: list[str] | None = None) -> NoReturn:
    """Run a command for configs, and leave; ``tools/*.py`` call it without ``arguments``, for those of the process."""
    prog = None if arguments is None else f'fnkd {command}'
    arguments = sys.argv[1:] if arguments is None else arguments
    PARSERS[command](prog).parse_args(arguments)  # a mistake, or --help, ends here, before anything is imported
    _leave(lambda: _load(command).main(arguments))


def main() -> NoReturn:
    """Run a command of the console."""
    arguments = sys.argv[1:] or ['--help']
    if arguments[0] == 'train' and any(name.endswith('.py') or '::' in name for name in arguments[1:]):
        run('train', arguments[1:])
    command = typer.main.get_command(app)
    _leave(lambda: command(_one_value_each(arguments, '--methods'), prog_name='fnkd', standalone_mode=False))


def _leave(work: Callable[[], Any]) -> NoReturn:
    """Work, and leave; an error is one sentence."""
    try:
        code = work()
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if hasattr(error, 'format_message'):  # of the command line
            where = getattr(getattr(error, 'ctx', None), 'command_path', 'fnkd')
            sys.exit(_complain(f'{error.format_message()} ({where} --help)', 2))
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {'SetupError', 'FileNotFoundError'}:
            sys.exit(_complain(str(error), 1))
        if 'URLError' in kinds:  # of the data sets that MMPretrain downloads
            sys.exit(_complain(f'a download failed: {error}; without a network, put the files into data_root.', 1))
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            sys.exit(_complain(f'{error.filename}: {error.strerror}.', 1))
        if isinstance(error, ModuleNotFoundError):
            sys.exit(_complain(f'{error.name} is not installed; fnkd doctor names the command that installs it.', 1))
        raise
    if code == 130:  # Typer's for Ctrl-C, too
        print('stopped', file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, code: int) -> int:
    # An error of a loader's worker process comes with its traceback, and the message last.
    sentence = message.rstrip().split('\n')[-1] if 'Traceback' in message else ' '.join(message.split())
    print(f'error: {sentence}', file=sys.stderr)
    return code


def _load(module: str) -> Any:
    """A module of fnkd_plugin.cli, which imports torch."""
    # Threads that wait for each other spin for some microseconds and then sleep: spinning for longer makes steps on a
    # CPU several times as slow beside other programs, and sleeping at once slower without any. torch reads it
    # when it is imported.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    os.environ.setdefault('GOMP_SPINCOUNT', '3000')
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
    if option in arguments and option not in found:
        found.append(option)  # Click says that it needs a value
    return found
