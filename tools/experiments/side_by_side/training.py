"""Training steps, tests and checkpoints of a group of students; on a GPU the steps are CUDA graphs."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.runner import set_random_seed
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from experiments.side_by_side.images import CENTRE, VIEWS, Images, Plan, TeacherPredictions
from experiments.side_by_side.network import SideBySide
from experiments.side_by_side.recipe import Recipe, Student
from fnkd_plugin.losses import SoftLoss, SoftTargetLoss
from fnkd_plugin.losses.auto_tau import LAMBDA
from fnkd_plugin.mm.config import dicts_in
from fnkd_plugin.mm.distill_head import DistillHead
from fnkd_plugin.prediction import Prediction

BRANCHES = 8
"""CUDA streams for the students' losses, each of which is many small kernels."""


class Losses:
    """The losses of all students. Equal losses are computed in one call, because small kernels are inefficient.

    Args:
        students: The students, whose distillation heads define the soft losses.
        models: Their classifiers, whose heads define the hard losses.
        seeds: For each student, the index of its seed in the plan.
        mean_norm: The teacher's mean feature norm, for ``tau='auto'``.
        device: The device of the training.
    """

    def __init__(
        self,
        students: Sequence[Student],
        models: Sequence[nn.Module],
        seeds: Sequence[int],
        mean_norm: float | None,
        device: torch.device,
    ) -> None:
        self._seeds = torch.tensor(seeds, device=device)
        self._hard: dict[str, tuple[nn.Module, list[int]]] = {}
        self._soft: dict[str, tuple[SoftLoss, list[int]]] = {}
        weights, self._warmups = [], []
        for i, (student, model) in enumerate(zip(students, models, strict=True)):
            equal = self._hard.setdefault(repr(student.model.head.loss), (model.head.loss_module.to(device), []))
            equal[1].append(i)
            head = None if student.head is None else _built(student.head, mean_norm)
            weights.append(1.0 if head is None else head.hard_weight)
            self._warmups.append(0.0 if head is None else head.warmup)
            for loss in () if head is None else (loss for loss in head.soft_losses if loss.loss_weight > 0):
                # The mean over the images of several students, times their number, is the sum of their losses.
                merges = isinstance(loss, SoftTargetLoss) and not loss.needs_feature_norm and not head.warmup
                key = repr(student.head) if merges else f'{i} {len(self._soft)}'
                self._soft.setdefault(key, (loss, []))[1].append(i)
        self._weights = torch.tensor(weights, device=device)
        self._growth = torch.ones(len(students), device=device)
        self._rows = {key: torch.tensor(rows, device=device) for key, (_, rows) in {**self._hard, **self._soft}.items()}
        self._branches = [torch.cuda.Stream(device) for _ in range(BRANCHES)] if device.type == 'cuda' else []

    def begin(self, epoch: int, epochs: int) -> None:
        """Set the warm-up factors of the soft losses for an epoch, counted from 0, of ``epochs``."""
        lengths = [share * epochs for share in self._warmups]
        self._growth.copy_(torch.tensor([min(1.0, (epoch + 1) / n) if n else 1.0 for n in lengths]))

    def hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum of the hard losses.

        Args:
            logits: [S, N, K].
            labels: The labels for each seed, [seeds, N].
        """
        count, total = logits.shape[1], []
        for key, (loss, _) in self._hard.items():
            rows = self._rows[key]
            targets = labels.index_select(0, self._seeds.index_select(0, rows)).flatten()
            weight = self._weights.index_select(0, rows)[:, None].expand(-1, count).flatten()
            total.append(loss(logits.index_select(0, rows).flatten(0, 1), targets, weight=weight, avg_factor=count))
        return torch.stack(total).sum()

    def soft(self, students: Prediction, teacher: Prediction, labels: Tensor) -> Tensor:
        """The sum of the soft losses.

        Args:
            students: Logits [S, N, K], feature norms [S, N] and biases [S, K].
            teacher: Logits [seeds, N, K] and feature norms [seeds, N] for each seed's batch, and a bias [K].
            labels: [seeds, N].
        """
        each = [Prediction(*parts) for parts in zip(*(x.unbind() for x in students if x is not None), strict=True)]
        main = torch.cuda.current_stream() if self._branches else None
        for branch in self._branches:
            branch.wait_stream(main)
        total = []
        for number, (key, (loss, rows)) in enumerate(self._soft.items()):
            with torch.cuda.stream(self._branches[number % BRANCHES]) if self._branches else nullcontext():
                seeds = self._seeds.index_select(0, self._rows[key])
                logits, norm = (x.index_select(0, seeds).flatten(0, 1) for x in teacher[:2])
                target = Prediction(logits, norm, teacher.origin)
                several = len(rows) > 1
                student = Prediction(torch.cat([each[row].logits for row in rows])) if several else each[rows[0]]
                found = loss(student, target, labels.index_select(0, seeds).flatten())
                if several:
                    found = found * len(rows)
                total.append(found * self._growth[rows[0]] if self._warmups[rows[0]] else found)
        for branch in self._branches:
            main.wait_stream(branch)
        return torch.stack(total).sum()


def _built(head: ConfigDict, mean_norm: float | None) -> DistillHead:
    config = head.to_dict()
    for node in dicts_in(config):
        if node.get('type') in ('FNKDLoss', 'FNTTMLoss') and node.get('tau', 'auto') == 'auto':
            assert mean_norm is not None
            node['tau'] = mean_norm / LAMBDA
    return MODELS.build(config)


class Group:
    """Students that train at once: of one architecture and recipe, with any losses and seeds.

    Args:
        name: The name in files and progress lines.
        recipe: The shared settings.
        students: At least one.
        train: The training set.
        test: The test set.
        table: The teacher's predictions; None for plain students.
        folder: The folder of the checkpoint.
        device: A CPU or a GPU.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        students: Sequence[Student],
        train: Images,
        test: Images,
        table: TeacherPredictions | None,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.name, self.recipe, self.students = name, recipe, list(students)
        # Named after its students, so that a checkpoint of others is neither used nor overwritten.
        names = ' '.join(student.job.folder.name for student in students)
        self.file = folder / f'{name}_{hashlib.sha256(names.encode()).hexdigest()[:8]}.pth'
        self.epoch, self.seconds, self.loss = 0, 0.0, math.nan
        self.curves: list[dict[int, float]] = [{} for _ in students]
        self.logits: Tensor | None = None
        self._train, self._test, self._table, self._device = train, test, table, device
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._cuda = device.type == 'cuda'
        models = []
        for student in students:
            # As the Runner does: seed, build, initialise.
            set_random_seed(student.job.seed)
            model = MODELS.build(student.model)
            model.init_weights()
            models.append(model)
        self.network = SideBySide(models).to(device)
        seeds = list(dict.fromkeys(s.job.seed for s in students))
        self.plan = Plan(seeds, len(train), recipe.batch_size)
        numbers = [seeds.index(s.job.seed) for s in students]
        self.losses = Losses(students, models, numbers, None if table is None else table.mean_norm, device)
        self._seed_of = torch.tensor(numbers, device=device)
        self._parameters = list(self.network.parameters())
        self._momenta = [torch.zeros_like(p) for p in self._parameters]
        self._rate = torch.zeros((), device=device)
        self._sum = torch.zeros((), device=device)
        self._at = torch.zeros(1, dtype=torch.long, device=device)
        whole, rest = self.plan(0)
        self._whole, self._rest = whole.to(device), rest.to(device)
        self.stream = torch.cuda.Stream(device) if self._cuda else None
        if self.file.exists():
            self._restore(torch.load(self.file, map_location=device, weights_only=True))

    @property
    def done(self) -> bool:
        """Whether all epochs are done, and the last one is tested."""
        return self.epoch >= self.recipe.epochs and not self.test_is_due

    @property
    def test_is_due(self) -> bool:
        """Whether the epoch has to be tested, as each from the first milestone on, and has not been yet."""
        first = min(*self.recipe.milestones, self.recipe.epochs) if self.recipe.milestones else 1
        return self.epoch >= first and self.epoch not in self.curves[0]

    def steps(self) -> Iterator[None]:
        """One epoch, step by step. On a GPU all work is queued on the group's own stream."""
        began = time.perf_counter()
        with self._on_stream():
            self.network.train()
            self._sum.zero_()
            self._rate.fill_(self.recipe.rate(self.epoch))
            self.losses.begin(self.epoch, self.recipe.epochs)
            whole, rest = self.plan(self.epoch)
            self._whole.copy_(whole)
            self._rest.copy_(rest)
            self._at.zero_()
        for _ in range(self.plan.steps):
            self._step(self.recipe.batch_size)
            yield
        if self.plan.rest:
            self._step(self.plan.rest)
            yield
        self.epoch += 1
        with self._on_stream():
            self.loss = float(self._sum) / (self.plan.steps + bool(self.plan.rest)) / len(self.students)
        self.seconds += time.perf_counter() - began

    def test(self) -> None:
        """Predict the test set, and add the accuracies to the curves."""
        began = time.perf_counter()
        with self._on_stream():
            self.logits = self.predict(self._test)
            right = (self.logits.argmax(2) == self._test.labels).float().mean(1).tolist()
        for curve, share in zip(self.curves, right, strict=True):
            curve[self.epoch] = 100 * share
        self.seconds += time.perf_counter() - began

    def _on_stream(self) -> Any:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def _step(self, size: int) -> None:
        """A step. On a GPU the first of a batch size runs eagerly, the second is captured, all others are replayed."""
        with self._on_stream():
            if not self._cuda:
                self.step(size)
            elif size in self._graphs:
                self._graphs[size].replay()
            else:
                self.step(size)
                self.stream.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=self.stream, capture_error_mode='thread_local'):
                    self.step(size)
                self._graphs[size] = graph

    def step(self, size: int) -> None:
        """Gradients of all losses, and an SGD update as in PyTorch."""
        if size == self.recipe.batch_size:
            indices, views = self._whole.index_select(1, self._at)[:, 0]
            self._at += 1
        else:
            indices, views = self._rest
        dtype = torch.bfloat16 if self._cuda else torch.float32
        images = self._train.batch(indices, views, dtype).index_select(0, self._seed_of)
        labels = self._train.labels.index_select(0, indices.flatten()).view(indices.shape)
        logits, features = self.network(images)
        loss = self.losses.hard(logits, labels)
        if self._table is not None:
            norms = torch.linalg.vector_norm(features, dim=2)
            students = Prediction(logits, norms, self.network.bias)
            loss = loss + self.losses.soft(students, self._table(indices, views), labels)
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        self._sum += loss.detach()
        with torch.no_grad():
            gradients = [p.grad for p in self._parameters]
            torch._foreach_add_(gradients, self._parameters, alpha=self.recipe.weight_decay)
            torch._foreach_mul_(self._momenta, self.recipe.momentum)
            torch._foreach_add_(self._momenta, gradients)
            torch._foreach_sub_(self._parameters, torch._foreach_mul(self._momenta, self._rate))

    @torch.no_grad()
    def predict(self, images: Images) -> Tensor:
        """Logits [S, M, K] of the images without augmentation."""
        found = []
        for part in torch.arange(len(images), device=self._device).split(max(100, 40000 // len(self.students))):
            found.append(self.forward(images, part, torch.full_like(part, CENTRE))[0])
        return torch.cat(found, 1)

    @torch.no_grad()
    def forward(self, images: Images, indices: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [S, N, K] and features [S, N, D] of views, in evaluation mode."""
        self.network.eval()
        dtype = torch.bfloat16 if self._cuda else torch.float32
        one = images.batch(indices, views, dtype)
        return self.network(one.expand(len(self.students), *one.shape).contiguous())

    def table(self, size: int = 4096) -> TeacherPredictions:
        """The predictions of a group with one model, the teacher, for all views of the training images."""
        rows = len(self._train) * VIEWS
        logits = torch.empty(rows, self.network.bias.shape[1], dtype=torch.float16, device=self._device)
        norms = torch.empty(rows, dtype=torch.float16, device=self._device)
        with self._on_stream():
            for start in range(0, rows, size):
                row = torch.arange(start, min(start + size, rows), device=self._device)
                z, f = self.forward(self._train, row // VIEWS, row % VIEWS)
                logits[start : start + size] = z[0]
                norms[start : start + size] = torch.linalg.vector_norm(f[0], dim=1)
            if self.stream is not None:
                self.stream.synchronize()
        return TeacherPredictions(logits, norms, self.network.bias[0].detach())

    def state_of(self, index: int) -> dict[str, Tensor]:
        """The state dict of a student in MMPretrain's format."""
        steps = self.plan.steps + bool(self.plan.rest)
        return self.network.state_of(index, self.epoch * steps)

    def save(self) -> None:
        """Save the state of training."""
        if self.stream is not None:
            self.stream.synchronize()
        state = dict(
            network=self.network.state_dict(), momenta=self._momenta, epoch=self.epoch, curves=self.curves,
            seconds=self.seconds, logits=self.logits,
        )  # fmt: skip
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix('.part')
        torch.save(state, partial)
        partial.replace(self.file)

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state['network'])
        for momentum, stored in zip(self._momenta, state['momenta'], strict=True):
            momentum.copy_(stored)
        self.epoch, self.curves, self.seconds = state['epoch'], state['curves'], state['seconds']
        self.logits = state['logits']
