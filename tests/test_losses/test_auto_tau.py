"""tau='auto': a third of the teacher's mean feature norm over the first 20 training batches, then kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.runner import Runner

from fnkd_plugin import Prediction
from fnkd_plugin.errors import SetupError
from fnkd_plugin.losses import FNKDLoss
from fnkd_plugin.losses.auto_tau import CALIBRATION_BATCHES
from tests.helpers import config, distilled, resnet, timm_teacher

pytestmark = pytest.mark.upstream


def _observe(loss: FNKDLoss, *norms: float) -> None:
    loss.observe(Prediction(torch.zeros(len(norms), 3), torch.tensor(norms), None))


def test_tau_is_a_third_of_the_mean_norm_of_all_images_so_far() -> None:
    loss = FNKDLoss()
    assert loss.tau != loss.tau, 'NaN before the first batch'
    _observe(loss, 3.0)
    assert loss.tau == pytest.approx(1.0)
    _observe(loss, 6.0, 9.0)
    assert loss.tau == pytest.approx(6.0 / 3)
    assert loss.log_vars()['tau'] == pytest.approx(2.0)


def test_after_twenty_batches_tau_is_kept() -> None:
    loss = FNKDLoss()
    for i in range(CALIBRATION_BATCHES):
        _observe(loss, 1.0 + i)
    assert loss.tau == pytest.approx(10.5 / 3)
    _observe(loss, 1e6)
    assert loss.tau == pytest.approx(10.5 / 3)


def test_a_number_stays_what_it_is() -> None:
    loss = FNKDLoss(tau=2.5)
    _observe(loss, 100.0)
    assert loss.tau == 2.5 and loss.log_vars()['tau'] == 2.5 and not loss.get_extra_state()


def test_auto_solves_the_papers_rule() -> None:
    """lambda^2 tau^2 / mean|f|^2 = 1 at lambda^2 = 9."""
    loss = FNKDLoss()
    _observe(loss, 20.0, 40.0)
    assert loss.loss_weight * loss.tau**2 / 30.0**2 == pytest.approx(1)


@pytest.mark.parametrize('norm', [0.0, float('nan'), float('inf')])
def test_a_teacher_without_norms_is_refused(norm: float) -> None:
    with pytest.raises(SetupError, match=r"tau='auto' needs .* norm > 0, but .*; check the teacher, or set tau"):
        _observe(FNKDLoss(), norm, norm)


def _config(folder: Path, work_dir: Path, **options: Any) -> Any:
    """Three epochs of twelve batches, exactly resumable, so that calibration ends within the second."""
    model = distilled(resnet(), timm_teacher(folder), dict(type='FNKDLoss'))
    cfg = config(model, work_dir, train_cfg=dict(by_epoch=True, max_epochs=3), **options)
    cfg.train_dataloader.update(batch_size=2)
    cfg.train_dataloader.dataset.update(count=24)
    cfg.default_hooks.update(reproducible=dict(type='ReproducibleHook'), safe=dict(type='SafeCheckpointHook'))
    return cfg


def _scalars(name: str) -> list[float]:
    return MessageHub.get_current_instance().get_scalar(f'train/{name}').data[0].tolist()


def test_auto_tau_through_a_run_and_its_resumption(tmp_path: Path) -> None:
    runner = Runner.from_cfg(_config(tmp_path, tmp_path / 'whole'))
    runner.train()
    norms, taus = _scalars('teacher_norm'), _scalars('tau')
    assert len(taus) == 36
    assert taus[0] == pytest.approx(norms[0] / 3, rel=1e-5)
    assert taus[19] == pytest.approx(sum(norms[:20]) / 20 / 3, rel=1e-5)
    assert len(set(taus[19:])) == 1 and len(set(taus[:20])) > 10
    final = runner.model.state_dict()

    stored = torch.load(tmp_path / 'whole' / 'epoch_2.pth', weights_only=True)
    assert stored['message_hub']['runtime_info']['fnkd_soft_losses']['loss_soft']['batches'] == 20

    for epoch in (1, 2):  # in the middle of the calibration, and after it
        work_dir = tmp_path / f'from_{epoch}'
        resumed = Runner.from_cfg(
            _config(tmp_path, work_dir, resume=True, load_from=str(tmp_path / 'whole' / f'epoch_{epoch}.pth'))
        )
        resumed.train()
        assert _scalars('tau')[12 * epoch :] == taus[12 * epoch :]
        for key, value in resumed.model.state_dict().items():
            assert torch.equal(value, final[key]), key


def test_two_losses_calibrate_and_resume_separately() -> None:
    losses = FNKDLoss(), FNKDLoss()
    for loss, norm in zip(losses, (3.0, 6.0), strict=True):
        _observe(loss, norm)
    assert [loss.tau for loss in losses] == [1.0, 2.0]
    again = FNKDLoss(), FNKDLoss()
    for loss, first, norm in zip(again, losses, (9.0, 12.0), strict=True):
        loss.load_state_dict(first.state_dict())
        _observe(loss, norm)
    assert [loss.tau for loss in again] == [2.0, 3.0]


@pytest.mark.parametrize(
    'state', [[1], {'sum': 1.0}, dict(sum='1', count=1, batches=1), dict(sum=-1, count=1, batches=1)]
)
def test_a_state_of_another_form_is_refused(state: Any) -> None:
    with pytest.raises(SetupError, match='three numbers >= 0'):
        FNKDLoss().set_extra_state(state)


@pytest.mark.parametrize(
    ('options', 'norm', 'ratio'),
    [
        (dict(tau=8.0, mode='clip'), 7.6, '9'),
        (dict(tau=8.0), 10.0, '5.76'),
        (dict(tau=8.0), 4.0, '36'),
        (dict(tau=8.0), 30.0, None),
        (dict(tau=2.0), 7.6, None),
        (dict(), 7.6, None),
    ],
)
def test_a_tau_that_makes_the_soft_loss_outweigh_the_hard_one_is_logged_once(
    options: dict, norm: float, ratio: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr('fnkd_plugin.losses.fnkd_loss._logger.warning', messages.append)
    loss = FNKDLoss(**options)
    for _ in range(2):
        _observe(loss, norm, norm)
    assert len(messages) == (ratio is not None)
    if ratio:
        assert f'about {ratio} times' in messages[0] and f'norm {norm:g}' in messages[0] and 'tau=8' in messages[0]


def test_a_new_run_forgets_the_last_ones_tau(tmp_path: Path) -> None:
    """Runs of one name that start in one second share MMEngine's message hub."""
    for seed, width in ((7, 1.0), (8, 3.0)):
        cfg = _config(tmp_path, tmp_path / f'run_{seed}', experiment_name='same')
        cfg.model.teacher.update(mean=[0.0] * 3, std=[255.0 / width] * 3)
        cfg.train_cfg.max_epochs = 1
        runner = Runner.from_cfg(cfg)
        runner.train()
        norms, taus = _scalars('teacher_norm')[-12:], _scalars('tau')[-12:]
        assert taus[0] == pytest.approx(norms[0] / 3, rel=1e-5)
        assert taus[-1] == pytest.approx(sum(norms) / 12 / 3, rel=1e-5)
