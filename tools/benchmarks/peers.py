"""A KD step of this package, timm's distillation task, torchdistill and a hand-written loop.

First with matched settings: the same networks, batch, normalisation on the device, optimiser, loss, dtype and memory
format. Then with the defaults of each (``matched: false``): contiguous fp32. Ours is also measured with
``execution='auto'``, and on a GPU as ``tools/train.py --amp`` trains (fp16).
torchdistill is measured if it can be imported: ``pip install --no-deps --target FOLDER torchdistill``, with FOLDER in
PYTHONPATH. Otherwise the results note that it was not measured.
"""

import argparse
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from experiments.readme import markdown
from timm.task import LogitDistillationTask
from torch import nn

from . import _pairs
from ._pairs import Batch, Pair, Setting
from ._timing import device_of, interleaved, median_interval, shown

TEMPERATURE, ALPHA = 4.0, 0.5
Step = Callable[[], Any]
_HAS_TORCHDISTILL = importlib.util.find_spec('torchdistill') is not None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    _pairs.add_arguments(parser, rounds=20)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure milliseconds per step, and the paired differences of our step and the others."""
    rows = []
    device = device_of(args)
    for pair in _pairs.chosen(args):
        for matched in (True, False):
            setting = Setting(device, _pairs.dtype_of(args), True) if matched else Setting(device)
            torch.manual_seed(0)
            todo = {name: make(pair, setting) for name, make in _makers(matched, device).items()}
            times = interleaved(todo, args.rounds, f'{pair}{", matched" if matched else ", defaults"}')
            row: dict[str, Any] = pair._asdict() | {'matched': matched, 'setting': setting._asdict()}
            row |= {f'{name}_ms': median_interval(ms) for name, ms in times.items()}
            for name, other in times.items():
                if name != 'ours':
                    differences = [a - b for a, b in zip(times['ours'], other, strict=True)]
                    row[f'ours_minus_{name}_ms'] = median_interval(differences)
            rows.append(row)
    found = importlib.metadata.version('torchdistill') if _HAS_TORCHDISTILL else 'not installed, not measured'
    return {'torchdistill': found, 'rounds': args.rounds, 'rows': rows}


def _makers(matched: bool, device: str) -> dict[str, Callable[[Pair, Setting], Step]]:
    makers = {'ours': ours, 'timm': timm_task, 'naive': naive}
    if _HAS_TORCHDISTILL:
        makers['torchdistill'] = torchdistill_box
    if not matched:
        makers['ours_auto'] = lambda pair, setting: ours(pair, setting, 'auto')
    if not matched and device == 'cuda':
        makers['ours_amp'] = lambda pair, setting: ours(pair, setting, {}, amp=True)
    return makers


def ours(pair: Pair, setting: Setting, execution: str | dict | None = None, amp: bool = False) -> Step:
    """A step of ``Distiller`` with MMEngine's ``train_step``."""
    soft_loss = dict(type='KDLoss', temperature=TEMPERATURE, loss_weight=1 - ALPHA)
    model = _pairs.distilled(pair, setting, soft_loss, hard_weight=ALPHA, execution=execution)
    return _pairs.train_step(model, Batch(pair, setting), setting, amp)


def timm_task(pair: Pair, setting: Setting) -> Step:
    """A step of timm's task, as in its documentation."""
    student, teacher = (_pairs.network(name, pair.size, setting) for name in pair[:2])
    task = LogitDistillationTask(
        student,
        teacher,
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=ALPHA,
        temperature=TEMPERATURE,
        device=torch.device(setting.device),
        verbose=False,
    ).train()
    return _step(student, setting, Batch(pair, setting), lambda images, labels: task(images, labels)['loss'])


def naive(pair: Pair, setting: Setting) -> Step:
    """A step written by hand."""
    student, teacher = (_pairs.network(name, pair.size, setting) for name in pair[:2])
    teacher.eval()

    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            v = teacher(images)
        z = student(images)
        kl = F.kl_div(F.log_softmax(z / TEMPERATURE, 1), F.softmax(v / TEMPERATURE, 1), reduction='batchmean')
        return ALPHA * F.cross_entropy(z, labels) + (1 - ALPHA) * TEMPERATURE**2 * kl

    return _step(student.train(), setting, Batch(pair, setting), loss)


def torchdistill_box(pair: Pair, setting: Setting) -> Step:
    """A step of torchdistill's single-stage box, configured as in its sample configs for KD."""
    from torchdistill.core.distillation import DistillationBox

    student, teacher = (_pairs.network(name, pair.size, setting) for name in pair[:2])
    logits = dict(
        student_module_path='.', student_module_io='output', teacher_module_path='.', teacher_module_io='output'
    )
    term = dict(criterion=dict(key='KDLoss', kwargs=dict(logits, temperature=TEMPERATURE, alpha=ALPHA)), weight=1.0)
    config = dict(
        num_epochs=1,
        teacher=dict(forward_proc='forward_batch_only', requires_grad=False),
        student=dict(forward_proc='forward_batch_only', requires_grad=True),
        optimizer=dict(key='SGD', kwargs=dict(lr=0.01, momentum=0.9)),
        criterion=dict(key='WeightedSumLoss', kwargs=dict(sub_terms=dict(kd=term))),
    )
    box = DistillationBox(teacher, student, {}, config, torch.device(setting.device), None, False, 1.0)
    box.teacher_model.eval()
    box.student_model.train()
    batch = Batch(pair, setting)

    def step() -> None:
        images, labels = batch.tensors()
        with setting.autocast():
            loss = box.forward_process(images, labels, None)
        box.post_forward_process(loss=loss)

    return step


def _step(student: nn.Module, setting: Setting, batch: Batch, loss_of: Callable[..., torch.Tensor]) -> Step:
    optim = _pairs.optimizer(student)

    def step() -> None:
        images, labels = batch.tensors()
        with setting.autocast():
            loss = loss_of(images, labels)
        optim.zero_grad()
        loss.backward()
        optim.step()

    return step


def table(results: dict[str, Any]) -> str:
    """A Markdown table of medians with 95 % intervals."""
    names = [key[:-3] for row in results['rows'] for key in row if key.endswith('_ms') and 'minus' not in key]
    names = list(dict.fromkeys(names))
    rows = []
    for row in results['rows']:
        title = f'{row["student"]} ← {row["teacher"]}, {"matched" if row["matched"] else "defaults"}'
        rows.append([title, *(shown(row[f'{name}_ms']) if f'{name}_ms' in row else '' for name in names)])
    return markdown(['student ← teacher, settings', *(f'{name}, ms' for name in names)], rows)
