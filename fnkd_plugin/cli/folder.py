"""``fnkd train FOLDER``: a teacher, then a student that learns from it, on a folder of photos."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

from fnkd_plugin.cli import train
from fnkd_plugin.cli.photos import Photos, read_photos
from fnkd_plugin.cli.recipe import LEARNING_RATES, SEED, TEACHER_SEED, Recipe, recipe_for, with_method
from fnkd_plugin.cli.terminal import console, duration, progress, silent_start
from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.mm import training
from fnkd_plugin.mm.config import load_config
from fnkd_plugin.mm.distill_config import METHODS
from fnkd_plugin.teachers.timm_models import check_timm_model
from fnkd_plugin.weights import read_state_dict

TRIAL_SHARE = 0.2
"""Of the training photos, held out to choose learning rates by; and of the epochs, a trial's length."""
_TRIALS = 'trials/'


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        config: What was trained; with it ``tools/train.py`` repeats the training.
        folder: Its log and checkpoints.
        checkpoint: The weights of the best epoch.
        best: The best epoch's accuracy on the validation photos, in per cent.
        last: The last epoch's.
        loss: The mean training loss of the last ten iterations.
        seconds: How long it took.
    """

    config: Path
    folder: Path
    checkpoint: Path
    best: float
    last: float
    loss: float
    seconds: float


class Workshop:
    """The trainings of one folder of photos, each done once: what is finished is read again.

    Args:
        recipe: The common settings.
        out: The folder of all results.
    """

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self._trials = _held_out(recipe, out)

    def check_models(self, **models: tuple[str, str | None]) -> None:
        """Build each model with the weights that it starts from, before anything is trained.

        Args:
            **models: timm's name and a checkpoint, or None for timm's published weights, by role.

        Raises:
            SetupError: If the weights cannot be read or fetched.
        """
        # Files first: a wrong name is found before anything is downloaded.
        for role, (model, checkpoint) in sorted(models.items(), key=lambda item: not item[1][1]):
            try:
                with silent_start():
                    MODELS.build(self.recipe.config(model, checkpoint, LEARNING_RATES[0]).model)
            except SetupError as error:
                if checkpoint is not None:
                    raise
                raise SetupError(f'{error} A file of weights: --{role}-checkpoint FILE.') from error

    def train(self, name: str, cfg: Config) -> Trained:
        """Train a config, or go on where it was stopped; ``name`` is its folder in ``out``."""
        folder = self.out / name
        done = folder / 'result.json'
        path = _write_config(cfg, folder)
        if done.is_file():
            found = json.loads(done.read_text())
        else:
            found = _run(path, folder, name)
            partial = done.with_suffix('.partial')
            partial.write_text(json.dumps(found, indent=1) + '\n')
            partial.replace(done)
        if not name.startswith(_TRIALS):
            console.print(f'{name}: {found["best"]:.1f} % in {duration(found["seconds"])}', markup=False)
        return Trained(
            path, folder, folder / found['checkpoint'], found['best'], found['last'], found['loss'], found['seconds']
        )

    def tuned(self, name: str, model: str, checkpoint: str | None, method: str, teacher: dict[str, Any]) -> float:
        """The learning rate with the best accuracy on the held-out part; of equals, of the smallest training loss."""
        scores, losses = {}, {}
        for rate in LEARNING_RATES:
            plain = self._trials.config(model, checkpoint, rate)
            cfg = with_method(plain, method, teacher)
            trial = self.train(f'{_TRIALS}{name}_lr{rate}', cfg)
            scores[rate], losses[rate] = trial.last, trial.loss
        best = max(LEARNING_RATES, key=lambda rate: (scores[rate], -losses[rate]))
        tried = ', '.join(f'{rate}: {score:.1f} %' for rate, score in scores.items())
        console.print(f'{name}: learning rate {best} (held-out photos, {tried})', markup=False)
        return best

    def finetuned(self, model: str, checkpoint: str | None) -> Trained:
        """The teacher, fine-tuned by a seed of its own, so that its crops are not the student's."""
        rate = self.tuned('teacher', model, checkpoint, 'plain', {})
        return self.train('teacher', self.recipe.config(model, checkpoint, rate, TEACHER_SEED))

    def student(
        self, method: str, model: str, checkpoint: str | None, teacher: dict[str, Any], seed: int = SEED
    ) -> Trained:
        """A student trained by a method with one seed."""
        rate = self.tuned(method, model, checkpoint, method, teacher)
        cfg = with_method(self.recipe.config(model, checkpoint, rate, seed), method, teacher)
        return self.train(method if seed == SEED else f'{method}_seed{seed}', cfg)


def open_folder(
    root: Path, out: Path, student: str, teacher: str, image_size: int | None = None, epochs: int | None = None
) -> Workshop:
    """Read and check the photos, and choose the recipe.

    Raises:
        SetupError: If timm knows no such model, or see :func:`~fnkd_plugin.cli.photos.read_photos`.
    """
    init_default_scope('mmpretrain')
    check_timm_model('--student', student, {})
    check_timm_model('--teacher', teacher, {})
    photos = checked(root)
    recipe = recipe_for(photos, photos.write_lists(out), image_size, epochs, student)
    console.print(
        f'recipe: {recipe.image_size} px, {recipe.epochs} epochs, batches of {recipe.batch_size}'
        f'{", mixed precision" if recipe.amp else ""}; results in {out}',
        markup=False,
    )
    return Workshop(recipe, out)


def check_methods(option: str, methods: list[str]) -> None:
    """Refuse a method that does not exist.

    Raises:
        SetupError: Lists those that do.
    """
    known = ['plain', 'lsr', *METHODS]
    unknown = [name for name in methods if name not in known]
    if unknown:
        raise SetupError(f'{option}: unknown method {first_few(unknown)}; known: {", ".join(known)}.')


def checked(root: Path) -> Photos:
    """The photos of a folder; prints their counts and what is odd about them."""
    photos = read_photos(root, lambda items, count: progress('reading photos', items, count))
    console.print(f'{root}: {photos.summary()}', markup=False)
    for note in photos.notes:
        console.print(f'note: {note}', markup=False)
    return photos


def train_folder(
    root: Path,
    student: str,
    teacher: str,
    out: Path,
    *,
    student_checkpoint: str | None = None,
    teacher_checkpoint: str | None = None,
    method: str = 'fnkd',
    image_size: int | None = None,
    epochs: int | None = None,
    baseline: bool = False,
) -> dict[str, Trained]:
    """Fine-tune the teacher, then train the student with it.

    Args:
        root: The photos.
        student: timm's name.
        teacher: timm's name.
        out: Where results go.
        student_checkpoint: Weights that the student starts from; None for timm's published ones.
        teacher_checkpoint: Weights that the teacher starts from; None for timm's published ones.
        method: ``fnkd``, ``kd``, ... of the presets.
        image_size: Pixels a side.
        epochs: Of each training.
        baseline: Whether to train the plain student as well.

    Returns:
        By name: ``teacher``, the method, and ``plain`` with ``baseline``.
    """
    check_methods('--method', [method])
    shop = open_folder(root, out, student, teacher, image_size, epochs)
    shop.check_models(student=(student, student_checkpoint), teacher=(teacher, teacher_checkpoint))
    found = {'teacher': shop.finetuned(teacher, teacher_checkpoint)}
    config = dict(type='TimmTeacher', model=teacher, checkpoint=str(found['teacher'].checkpoint.absolute()))
    found[method] = shop.student(method, student, student_checkpoint, config)
    if baseline:
        found['plain'] = shop.student('plain', student, student_checkpoint, config)
    final = out / f'{student}.safetensors'
    shop.recipe.bundle(student).save(read_state_dict(found[method].checkpoint), final)
    console.print('Validation accuracy of the best epoch:')
    for name, trained in found.items():
        who = f'teacher {teacher}' if name == 'teacher' else f'{name} student {student}'
        console.print(f'{who:<40} {trained.best:5.1f} %  ({duration(trained.seconds)})', markup=False)
    console.print(f'model: {final}', markup=False)
    classes = len(shop.recipe.photos.classes)
    console.print(
        f"import timm\nmodel = timm.create_model('{student}', num_classes={classes}, checkpoint_path='{final}')\n"
        f'or: fnkd predict {final} PHOTO ...',
        markup=False,
    )
    return found


def _held_out(recipe: Recipe, out: Path) -> Recipe:
    """The recipe of trials: a fifth of the training photos held out, and a fifth of the epochs."""
    every = round(1 / TRIAL_SHARE)
    seen: dict[int, int] = {}
    train: list[tuple[str, int]] = []
    val: list[tuple[str, int]] = []
    for path, label in recipe.photos.train:
        seen[label] = seen.get(label, 0) + 1
        (val if seen[label] % every == 2 else train).append((path, label))
    photos = replace(recipe.photos, train=train, val=val or train)
    return replace(
        recipe,
        photos=photos,
        lists=photos.write_lists(out / _TRIALS),
        epochs=max(2, round(recipe.epochs * TRIAL_SHARE)),
    )


def _write_config(cfg: Config, folder: Path) -> Path:
    # Beside the folder: in it MMEngine writes the config that it makes of this one.
    path = folder.parent / f'{folder.name}.py'
    folder.mkdir(parents=True, exist_ok=True)
    cfg = Config({**cfg.to_dict(), 'work_dir': str(folder)})
    if path.is_file() and Config.fromfile(path).pretty_text != cfg.pretty_text:
        raise SetupError(f'{path} is of another training; give another --out, or remove {path} and {folder}.')
    if not path.is_file():
        cfg.dump(path)
    return path


def _run(path: Path, folder: Path, title: str) -> dict[str, Any]:
    began = time.monotonic()
    cfg = load_config(path)
    cfg.resume = (folder / 'last_checkpoint').is_file()
    training.check_data_roots(cfg)
    training.set_loader_defaults(cfg)
    runner = train.run(cfg, title, summary=False)
    scores = runner.message_hub.get_scalar('val/accuracy/top1')
    best = Path(runner.message_hub.get_info('best_ckpt'))
    return dict(
        best=float(runner.message_hub.get_info('best_score')),
        last=float(scores.current()),
        loss=float(runner.message_hub.get_scalar('train/loss').mean(10)),
        checkpoint=best.name,
        seconds=time.monotonic() - began,
    )
