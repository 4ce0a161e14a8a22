"""``fnkd train FOLDER``: a teacher, then a student that learns from it, on a folder of photos."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import nn

from fnkd_plugin.cli import train
from fnkd_plugin.cli.batch_size import fitting_batch_size
from fnkd_plugin.cli.photos import Photos, read_photos
from fnkd_plugin.cli.ready_teacher import accuracy_of, ready_teacher, teacher_config
from fnkd_plugin.cli.recipe import SEED, TEACHER_LENGTH, TEACHER_SEED, recipe_for, with_method
from fnkd_plugin.cli.small_photos import make_copies, small_photos
from fnkd_plugin.cli.terminal import console, duration, print_table, progress, silent_start
from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.mm import training
from fnkd_plugin.mm.config import load_config
from fnkd_plugin.teachers.timm_models import check_timm_model
from fnkd_plugin.weights import MismatchedWeightsError, read_state_dict


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        config: What was trained; with it ``tools/train.py`` repeats the training.
        folder: Its log and checkpoints.
        checkpoint: The final weights.
        accuracy: Theirs on the validation photos, in per cent.
        seconds: How long the iterations took, also before an interruption.
    """

    config: Path
    folder: Path
    checkpoint: Path
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Teacher:
    """A teacher of the folder's classes.

    Attributes:
        config: Of ``Distiller(teacher=...)``.
        accuracy: On the validation photos, in per cent.
        seconds: How long the fine-tuning took; 0 if none was needed.
    """

    config: dict[str, Any]
    accuracy: float
    seconds: float = 0.0


@dataclass(frozen=True)
class Model:
    """A model to start from: timm's name, and a checkpoint, or None for timm's published weights."""

    name: str
    checkpoint: str | None = None


class Experiment:
    """The trainings of one folder of photos, each done once: what is finished is read again.

    Args:
        root: The photos.
        out: The folder of all results.
        student: The small model.
        teacher: The big one.
        image_size: Pixels a side; None for the recipe's.
        iterations: Of a student; None for the recipe's.

    Raises:
        SetupError: If a model is unknown, its weights cannot be read or fetched, or the photos cannot be used.
    """

    def __init__(
        self,
        root: Path,
        out: Path,
        student: Model,
        teacher: Model,
        image_size: int | None = None,
        iterations: int | None = None,
    ) -> None:
        init_default_scope('mmpretrain')
        self.out, self.models = out, dict(student=student, teacher=teacher)
        for role, model in self.models.items():
            check_timm_model(f'--{role}', model.name, {})
        photos = checked(root)
        settings = photos, out, image_size, iterations, student.name
        self.recipe = recipe_for(*settings)
        models = self._built()
        if torch.cuda.is_available():
            self.recipe = recipe_for(*settings, fitting_batch_size(self.recipe.batch_size, models))
        size = self.recipe.image_size
        small, of_train, of_val = small_photos(photos, out / f'photos_{size}px', size)
        small.write_lists(out)
        make_copies(of_train, of_val, size, lambda items, count: progress('copying', items, count))
        recipe = self.recipe = replace(self.recipe, photos=small)
        console.print(
            f'recipe: {recipe.image_size} px, {recipe.iterations} iterations of {recipe.batch_size} photos'
            f'{" in mixed precision" if recipe.amp else ""}; results in {out}',
            markup=False,
        )

    def teacher(self) -> Teacher:
        """The teacher as it is, if its checkpoint is of the folder's classes; else fine-tuned.

        Fine-tuning has a seed of its own, so that the teacher's crops are not the student's.
        """
        name, checkpoint = self.models['teacher'].name, self.models['teacher'].checkpoint
        size = self.recipe.teacher_size(name)
        config = ready_teacher(name, checkpoint, self.recipe.photos.classes, size) if checkpoint else None
        if config:
            accuracy = accuracy_of(config, self.recipe)
            console.print(f'teacher: {accuracy:.1f} %, used as it is: {checkpoint}', markup=False)
            return Teacher(config, accuracy)
        shorter = replace(self.recipe, iterations=max(1, round(TEACHER_LENGTH * self.recipe.iterations)))
        found = self.train('teacher', shorter.config(name, checkpoint, TEACHER_SEED, size))
        return Teacher(teacher_config(name, found.checkpoint, size), found.accuracy, found.seconds)

    def student(self, method: str, teacher: Teacher, seed: int = SEED) -> Trained:
        """A student trained by a method with one seed; its folder has it as :class:`~fnkd_plugin.cli.bundle.Bundle`."""
        cfg = self.recipe.config(self.models['student'].name, self.models['student'].checkpoint, seed)
        name = method if seed == SEED else f'{method}_seed{seed}'
        found = self.train(name, with_method(cfg, method, teacher.config))
        if not self.model_file(found).is_file():
            bundle = self.recipe.bundle(self.models['student'].name)
            bundle.save(read_state_dict(found.checkpoint), self.model_file(found))
        return found

    def model_file(self, student: Trained) -> Path:
        """The weights of a student under timm's keys."""
        return student.folder / f'{self.models["student"].name}.safetensors'

    def train(self, name: str, cfg: Config) -> Trained:
        """Train a config, or go on where it was stopped; ``name`` is its folder in ``out``."""
        folder = self.out / name
        result = folder / 'result.json'
        path = _write_config(cfg, folder)
        if not result.is_file():
            found = _run(path, folder, name)
            partial = result.with_suffix('.partial')
            partial.write_text(json.dumps(found, indent=1) + '\n')
            partial.replace(result)
        found = json.loads(result.read_text())
        console.print(f'{name}: {found["accuracy"]:.1f} % in {duration(found["seconds"])}', markup=False)
        return Trained(path, folder, folder / found['checkpoint'], found['accuracy'], found['seconds'])

    def _built(self) -> list[tuple[nn.Module, int]]:
        """Both models with the weights that they start from and their images' sizes, before anything is trained."""
        recipe = self.recipe
        found = []
        # Files first: a wrong name is found before anything is downloaded.
        for role, model in sorted(self.models.items(), key=lambda item: not item[1].checkpoint):
            if model.checkpoint is None:
                text = f'{role}: loading the published weights of {model.name}, downloaded once'
                console.print(f'{text} (without a network: --{role}-checkpoint FILE)', markup=False)
            try:
                with silent_start():
                    built = MODELS.build(recipe.config(model.name, model.checkpoint).model)
                found.append((built, recipe.teacher_size(model.name) if role == 'teacher' else recipe.image_size))
            except MismatchedWeightsError as error:
                other = 'teacher' if role == 'student' else 'student'
                raise SetupError(
                    f'--{role}-checkpoint {model.checkpoint} has no weights of {model.name}; give those, or exchange '
                    f'it with --{other}-checkpoint.'
                ) from error
            except SetupError as error:
                raise SetupError(str(error).replace('checkpoint=', f'--{role}-checkpoint ')) from error
        return found


def checked(root: Path) -> Photos:
    """The photos of a folder; prints their counts and what is odd about them."""
    photos = read_photos(root, lambda items, count: progress('reading photos', items, count))
    console.print(f'{root}: {photos.summary()}', markup=False)
    for note in photos.notes:
        console.print(f'note: {note}', markup=False)
    return photos


def train_folder(experiment: Experiment, method: str = 'fnkd', baseline: bool = False) -> dict[str, Teacher | Trained]:
    """Fine-tune the teacher, train the student with it, and print the results.

    Args:
        experiment: Models, photos and settings.
        method: ``fnkd``, ``kd``, ... of the presets.
        baseline: Whether to train the plain student as well.

    Returns:
        By name: ``teacher``, the method, and ``plain`` with ``baseline``.
    """
    teacher = experiment.teacher()
    methods = dict.fromkeys([method, *(['plain'] if baseline else [])])
    found: dict[str, Teacher | Trained] = {'teacher': teacher}
    students = {name: experiment.student(name, teacher) for name in methods}
    found.update(students)
    small, big = experiment.models['student'].name, experiment.models['teacher'].name
    final = experiment.model_file(students[method])
    rows = [
        (name, big if name == 'teacher' else small, f'{one.accuracy:.1f}', duration(one.seconds))
        for name, one in found.items()
    ]
    print_table(('', 'model', 'top-1, %', 'trained in'), rows)
    classes = len(experiment.recipe.photos.classes)
    console.print(
        f'The student is {final}:\n  import timm\n'
        f"  model = timm.create_model('{small}', num_classes={classes}, checkpoint_path='{final}')\n"
        f'or: fnkd predict {final} PHOTO ...',
        markup=False,
    )
    return found


def _text(cfg: Config, key: str) -> str:
    return Config({key: cfg.get(key)}).pretty_text


def _write_config(cfg: Config, folder: Path) -> Path:
    # Beside the folder: in it MMEngine writes the config that it makes of this one.
    path = folder.parent / f'{folder.name}.py'
    folder.mkdir(parents=True, exist_ok=True)
    cfg = Config({**cfg.to_dict(), 'work_dir': str(folder)})
    if path.is_file() and (earlier := Config.fromfile(path)).pretty_text != cfg.pretty_text:
        other = [key for key in cfg if _text(earlier, key) != _text(cfg, key)]
        raise SetupError(
            f'{path} is of another training (different: {first_few(other)}); give another --out, or remove {path} and '
            f'{folder}.'
        )
    if not path.is_file():
        cfg.dump(path)
    return path


def _run(path: Path, folder: Path, title: str) -> dict[str, Any]:
    cfg = load_config(path)
    cfg.resume = (folder / 'last_checkpoint').is_file()
    training.check_data_roots(cfg)
    training.set_loader_defaults(cfg)
    runner = train.run(cfg, title, summary=False)
    times, counts = runner.message_hub.get_scalar('train/time').data
    return dict(
        accuracy=float(runner.message_hub.get_scalar('val/accuracy/top1').current()),
        checkpoint=Path((folder / 'last_checkpoint').read_text()).name,
        seconds=float((times * counts).sum()),
    )
