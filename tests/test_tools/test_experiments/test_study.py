"""Running a table of real, tiny trainings: order, resuming, seeds."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.test_tools.processes import forget_run

TINY = {'train_cfg.max_iters': '4', 'train_cfg.val_interval': '4', 'train_dataloader.batch_size': '10'}


class InThisProcess(Executor):
    """Runs a job when it is submitted; a worker process would import everything first."""

    def __init__(self, *_: Any) -> None: ...

    def submit(self, call: Callable, *args: Any) -> Future:  # type: ignore[override]
        done: Future = Future()
        try:
            done.set_result(call(*args))
        except Exception as error:
            done.set_exception(error)
        finally:
            forget_run()
        return done


@pytest.fixture(autouse=True)
def _no_worker_processes(monkeypatch: pytest.MonkeyPatch, _tools_on_path: None) -> None:
    from experiments import study

    monkeypatch.setattr(study, 'ProcessPoolExecutor', InThisProcess)


def _study(tmp_path: Path, seeds: int, **options: str):
    from experiments.results import Results
    from experiments.study import Study
    from experiments.tables import digits

    return Study(digits(2), Results(tmp_path / 'r.json'), tmp_path / 'runs', range(seeds), {**TINY, **options})


def test_taught_methods_wait_for_the_teacher_and_finals_for_trials(tmp_path: Path) -> None:
    study = _study(tmp_path, 2)
    plain, _, kd, _ = study.table.methods
    assert [job.name for job in study.ready([plain, kd])] == ['teacher', 'plain_trial0', 'plain_trial1']
    study.results.add((study.teacher, dict(accuracy=99.0, checkpoint='t.pth')))
    study.folder.mkdir()
    (study.folder / 't.pth').touch()
    assert [job.name for job in study.ready([plain, kd])] == ['plain_trial0', 'plain_trial1', 'kd_trial0', 'kd_trial1']
    assert study.ready([kd])[0].teacher == study.folder / 't.pth'
    for i, job in enumerate(study.trials(kd)):
        study.results.add((job, dict(accuracy=50.0 + i)))
    assert [job.name for job in study.ready([kd])] == ['kd_seed0', 'kd_seed1']
    assert study.ready([kd])[0].options.items() >= kd.trials[1].items()
    for job in study.trials(plain):
        study.results.add((job, dict(accuracy=50.0)))
    # Seed by seed, so that a table that is cut off compares all methods.
    assert [job.name for job in study.ready([plain, kd])] == ['plain_seed0', 'kd_seed0', 'plain_seed1', 'kd_seed1']


def test_finals_read_a_cache_that_the_teachers_training_makes(tmp_path: Path) -> None:
    from dataclasses import replace

    from experiments.results import Results
    from experiments.study import Study
    from experiments.tables import digits

    part = {'val_dataloader.dataset.split': 'test', 'train_dataloader.dataset.indices': 32}
    table = replace(digits(1), cached_views=2, final_options=part)
    study = Study(table, Results(tmp_path / 'r.json'), tmp_path / 'runs', range(1), TINY)
    plain, _, kd, fnkd = table.methods
    assert [job.name for job in study.ready([plain, kd])] == ['teacher', 'plain_seed0']
    study.run([plain, kd, fnkd], 1, Console(quiet=True))
    cache = study.teacher.cache
    assert cache is not None and cache.complete and cache.folder.parent == tmp_path / 'runs'
    [job] = study.finals(kd)
    # All see the same images, and the results file says so.
    for entry in (study.results.runs['plain_seed0'], study.results.runs['kd_seed0']):
        assert entry['options']['default_hooks.reproducible.replay.views'] == 2
    assert "type='CachedTeacher'" in (job.folder / 'fnkd_digits.py').read_text()
    assert str(tmp_path) not in study.results.path.read_text()
    # Lost, it is made again before anything is taught.
    shutil.rmtree(cache.folder)
    more = Study(table, study.results, tmp_path / 'runs', range(2), TINY)
    assert [job.name for job in more.ready([kd])] == ['teacher']
    more.run([kd], 1, Console(quiet=True))
    assert cache.complete and 'kd_seed1' in more.results.runs


def test_a_single_trial_is_not_run(tmp_path: Path) -> None:
    from experiments.results import Results
    from experiments.study import Study
    from experiments.tables import digits

    study = Study(digits(1), Results(tmp_path / 'r.json'), tmp_path, range(1))
    plain = study.table.methods[0]
    assert [job.name for job in study.ready([plain])] == ['teacher', 'plain_seed0']
    assert study.count([plain]) == 2


def test_a_teacher_whose_weights_are_elsewhere_is_trained_again_where_it_is_needed(tmp_path: Path) -> None:
    study = _study(tmp_path, 1)
    plain, _, kd, _ = study.table.methods
    study.results.add((study.teacher, dict(accuracy=99.0, checkpoint='t.pth')))
    assert [job.name for job in study.ready([plain])] == ['plain_trial0', 'plain_trial1']
    assert [job.name for job in study.ready([plain, kd])] == ['teacher', 'plain_trial0', 'plain_trial1']


def test_other_options_have_another_folder(tmp_path: Path) -> None:
    method = _study(tmp_path, 1).table.methods[0]
    folders = {_study(tmp_path, 1, lr=lr).trials(method)[0].folder for lr in ('1', '2', '2')}
    assert len(folders) == 2


def test_what_has_run_is_not_run_again_and_seeds_can_be_added(tmp_path: Path) -> None:
    study = _study(tmp_path, 1)
    methods = study.table.methods[:1]
    study.run(methods, 1, Console(quiet=True))
    assert set(study.results.runs) == {'teacher', 'plain_trial0', 'plain_trial1', 'plain_seed0'}
    entry = study.results.runs['plain_seed0']
    assert {'accuracy', 'nll', 'ece', 'agreement', 'seconds'} <= set(entry)
    assert study.checkpoint(study.finals(methods[0])[0]).is_file()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / 'runs').rglob('*.pth')}
    more = _study(tmp_path, 2)
    more.run(methods, 1, Console(quiet=True))
    assert set(more.results.runs) == {*study.results.runs, 'plain_seed1'}
    assert more.results.runs['plain_seed0'] == entry
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in written.items())


@pytest.mark.parametrize('left', ['measured', 'stale', 'nothing'])
def test_a_training_cut_off_after_its_last_checkpoint_is_measured_by_that(left: str, tmp_path: Path) -> None:
    study = _study(tmp_path, 1)
    study.run(study.table.methods[:1], 1, Console(quiet=True))
    job = study.finals(study.table.methods[0])[0]
    before = study.results.runs[job.name]
    study.results.path.write_text(study.results.path.read_text().replace(f'"{job.name}"', '"forgotten"'))
    if left == 'stale':  # of an evaluation before the last checkpoint
        np.savez(job.predictions, scores=np.eye(10)[[0, 1]], labels=[0, 1])
        os.utime(job.predictions, (0, 0))
    elif left == 'nothing':
        job.predictions.unlink()
    again = _study(tmp_path, 1)
    assert job.name not in again.results.runs
    again.run(study.table.methods[:1], 1, Console(quiet=True))
    measures = ('accuracy', 'nll', 'ece', 'agreement', 'checkpoint')
    assert [again.results.runs[job.name][m] for m in measures] == [before[m] for m in measures]


def test_the_folder_of_images_reaches_every_training_and_no_results_file(tmp_path: Path) -> None:
    from experiments.results import Results
    from experiments.study import Study
    from experiments.tables import cub2010

    study = Study(cub2010(), Results(tmp_path / 'r.json'), tmp_path, range(1), data_root=tmp_path / 'birds')
    job = study.trials(study.table.methods[0])[0]
    assert f'data_root={tmp_path / "birds"}' in job.arguments() and 'data_root' not in job.options
    assert job.folder == Study(cub2010(), study.results, tmp_path, range(1)).trials(study.table.methods[0])[0].folder


def test_a_failure_names_the_training_and_its_log(tmp_path: Path) -> None:
    from experiments.study import StudyError

    study = _study(tmp_path, 1, **{'train_dataloader.dataset.split': 'nowhere'})
    with pytest.raises(StudyError, match=r"teacher: SetupError: Digits: split 'nowhere'[^\n]*\nThe logs are in .*logs"):
        study.run(study.table.methods[:1], 1, Console(quiet=True))


def test_a_time_limit_stops_before_the_training_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.study import OutOfTimeError

    monkeypatch.setattr(InThisProcess, 'submit', lambda *_: Future())
    study = _study(tmp_path, 1)
    with pytest.raises(OutOfTimeError, match='same command'):
        study.run(study.table.methods[:1], 1, Console(quiet=True), minutes=0.001)


def test_images_on_the_device_and_a_cached_teacher_exclude_each_other(tmp_path: Path) -> None:
    from experiments.results import Results
    from experiments.study import Study, StudyError
    from experiments.tables import cub2010_small

    with pytest.raises(StudyError, match='--device'):
        Study(cub2010_small(), Results(tmp_path / 'r.json'), tmp_path, range(1), on_device=True)
