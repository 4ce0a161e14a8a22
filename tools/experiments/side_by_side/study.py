"""Train a table's jobs at once: first the teacher and the plain students, then the distilled ones."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from rich.console import Console

import fnkd_plugin  # noqa: F401  (registers the losses)
from experiments.results import measures
from experiments.side_by_side.images import Images, TeacherPredictions
from experiments.side_by_side.recipe import Student, read
from experiments.side_by_side.training import Group
from experiments.study import OutOfTimeError, Study, StudyError
from experiments.tables import Method

SAVED_EVERY = 60
"""Seconds between two checkpoints."""


class SideBySideStudy:
    """Runs the missing trainings of a study in this process.

    Args:
        study: The study, with table, results and folder.
        device: ``'cuda'`` or ``'cpu'``.
        console: Prints a line for each epoch.
        minutes: Time limit, after which the state is saved; None for no limit.
    """

    def __init__(self, study: Study, device: str, console: Console, minutes: float | None = None) -> None:
        self._study, self._device, self._console = study, torch.device(device), console
        self._ends = None if minutes is None else time.monotonic() + 60 * minutes
        init_default_scope('mmpretrain')
        # It would log a line for the initialisation of each layer of each student.
        MMLogger.get_current_instance().setLevel('WARNING')

    def run(self, methods: Sequence[Method]) -> None:
        """Run the missing trainings.

        Raises:
            OutOfTimeError: If the time limit is reached.
            StudyError: If a method has trials.
        """
        tuned = [m.title for m in methods if len(m.trials) > 1]
        if tuned:
            raise StudyError(f'{", ".join(tuned)}: trials are not supported with --device; leave it out.')
        study = self._study
        missing = [job for m in methods for job in study.finals(m) if study.results.find(job) is None]
        missing.sort(key=lambda job: job.seed)
        pairs = [read(job) for job in (study.teacher, *missing)]
        recipe = pairs[0][0]
        odd = next((student.job.name for other, student in pairs if other != recipe), None)
        if odd is not None:
            raise StudyError(f"{odd}: its recipe differs from the teacher's; leave out --device.")
        train, test = (Images(part, recipe, self._device) for part in (recipe.train, recipe.test))
        folder = study.folder / 'side_by_side'

        def group_of(name: str, students: list[Student], table: TeacherPredictions | None) -> Group:
            return Group(name, recipe, students, train, test, table, folder, self._device)

        students = [student for _, student in pairs[1:]]
        plain = [student for student in students if student.head is None]
        distilled = [student for student in students if student.head is not None]
        teacher = group_of('teacher', [pairs[0][1]], None)
        first = [] if teacher.done else [teacher]
        if plain:
            first.append(group_of('plain', plain, None))
        self._train(first)
        assert teacher.logits is not None
        if study.results.find(study.teacher) is None:
            self._record(teacher, None)
        for group in first:
            if group is not teacher:
                self._record(group, teacher.logits[0])
        if not distilled:
            return
        if not self._has(60):
            raise OutOfTimeError('time limit reached; the same command continues from here.')
        began = time.perf_counter()
        table = teacher.table()
        self._say(f'predictions of the teacher: {time.perf_counter() - began:.0f} s, mean norm {table.mean_norm:.3f}')
        group = group_of('distilled', distilled, table)
        self._train([group])
        self._record(group, teacher.logits[0])

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def _train(self, groups: Sequence[Group]) -> None:
        """Train groups at the same time, alternating their steps."""
        running = [self._epochs(group) for group in groups]
        while running:
            running = [epochs for epochs in running if next(epochs, self) is None]
        for group in groups:
            group.save()
        if not all(group.done for group in groups):
            raise OutOfTimeError('time limit reached; the same command continues from here.')

    def _epochs(self, group: Group) -> Iterator[None]:
        seconds, saved = 0.0, time.monotonic()
        while not group.done and self._has(1.1 * seconds + 5):
            began = time.monotonic()
            if not group.test_is_due:  # it is in a checkpoint from before a test that was cut off
                yield from group.steps()
                # The first test compiles kernels and takes most memory, so the training is saved before it.
                if time.monotonic() - saved > SAVED_EVERY or (group.test_is_due and group.logits is None):
                    group.save()
                    saved = time.monotonic()
            if group.test_is_due:
                group.test()
            seconds = time.monotonic() - began
            self._progress(group, seconds)

    def _has(self, seconds: float) -> bool:
        return self._ends is None or time.monotonic() + seconds < self._ends

    def _progress(self, group: Group, seconds: float) -> None:
        count = len(group.students)
        speed = count * (group.plan.steps + bool(group.plan.rest)) / seconds
        left = seconds * (group.recipe.epochs - group.epoch)
        accuracy = [curve[group.epoch] for curve in group.curves if group.epoch in curve]
        mean = f', top-1 {sum(accuracy) / len(accuracy):.2f} %' if accuracy else ''
        self._say(
            f'{group.name}: epoch {group.epoch}/{group.recipe.epochs} of {count}, {seconds:.1f} s, '
            f'{speed:,.0f} steps/s, loss {group.loss:.3f}{mean}, {left / 60:.1f} min to go'
        )

    def _record(self, group: Group, teacher: torch.Tensor | None) -> None:
        """Save the weights of a finished group, then its results, all at once."""
        assert group.logits is not None
        results = []
        for i, student in enumerate(group.students):
            job, curve = student.job, group.curves[i]
            job.folder.mkdir(parents=True, exist_ok=True)
            file = job.folder / f'epoch_{group.epoch}.pth'
            torch.save(dict(meta={}, state_dict=group.state_of(i)), file)
            scores = group.logits[i].double().softmax(1).cpu()
            best = max(curve, key=lambda epoch: curve[epoch])
            found: dict[str, Any] = measures(
                scores, group._test.labels.cpu(), None if teacher is None else teacher.cpu()
            )
            found |= dict(best_accuracy=round(curve[best], 4), best_epoch=best)
            found |= dict(seconds=round(group.seconds, 1), side_by_side=len(group.students))
            results.append((job, {**found, 'checkpoint': str(file.relative_to(self._study.folder))}))
            self._say(f'{job.name}: {found["accuracy"]:.2f} %, best {found["best_accuracy"]:.2f} %')
        self._study.results.add(*results)
