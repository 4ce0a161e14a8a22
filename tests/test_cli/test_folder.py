import dataclasses
import json
import math
import multiprocessing
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mmcv
import pytest
import safetensors.torch
import timm
import torch
from mmengine.runner import Runner
from PIL import Image

from fnkd_plugin.cli import bundle, compare, folder, train
from fnkd_plugin.cli import test as cli_test
from fnkd_plugin.cli.compare_page import page
from fnkd_plugin.cli.progress_hook import ProgressHook
from fnkd_plugin.errors import SetupError
from fnkd_plugin.weights import read_state_dict
from tests.helpers import timm_checkpoint
from tests.test_cli import photos

MODEL = 'test_resnet'


def models(root: Path) -> tuple[folder.Model, folder.Model]:
    """Student and teacher with weights of seven other classes."""
    model = folder.Model(MODEL, str(timm_checkpoint(root, MODEL, num_classes=7)))
    return model, model


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, folder.Trained]]:
    root = tmp_path_factory.mktemp('shop')
    found = folder.train_folder(
        folder.Experiment(photos.folder(root / 'photos', train=8, val=4), root / 'out', *models(root), 32, 36),
        baseline=True,
    )
    return root, found


def test_colours_are_learned_and_every_file_is_there(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    _, found = trained
    assert set(found) == {'teacher', 'fnkd', 'plain'}
    assert found['teacher'].accuracy > 40
    for one in (found['fnkd'], found['plain']):
        assert one.config.is_file() and one.checkpoint.is_file()


def test_teacher_and_students_have_seeds_of_their_own(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    from mmengine.config import Config

    _, found = trained
    seeds = {name: Config.fromfile(found['fnkd'].config.with_name(f'{name}.py')).randomness.seed for name in found}
    assert seeds['fnkd'] == seeds['plain'] != seeds['teacher']


def test_trainings_leave_no_process_behind(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    assert not multiprocessing.active_children()


def test_a_second_call_trains_nothing(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    root, found = trained
    experiment = folder.Experiment(root / 'photos', root / 'out', *models(root), image_size=32, iterations=36)
    again = folder.train_folder(experiment, baseline=True)
    assert again == found


def test_the_written_config_repeats_the_student_bit_for_bit(
    trained: tuple[Path, dict[str, folder.Trained]], tmp_path: Path
) -> None:
    _, found = trained
    train.main([str(found['fnkd'].config), '--work-dir', str(tmp_path)])
    first, second = (
        torch.load(path, weights_only=True)['state_dict']
        for path in (found['fnkd'].checkpoint, tmp_path / found['fnkd'].checkpoint.name)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_command_that_was_stopped_goes_on_bit_for_bit(
    trained: tuple[Path, dict[str, folder.Trained]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, found = trained
    experiment = folder.Experiment(root / 'photos', tmp_path, *models(root), image_size=32, iterations=36)
    whole = ProgressHook.after_train_iter

    def stop(hook: ProgressHook, runner: Runner, *args: object, **kwargs: object) -> None:
        whole(hook, runner, *args, **kwargs)
        if runner.iter == 12:
            raise KeyboardInterrupt

    cfg = experiment.recipe.config(MODEL, models(root)[0].checkpoint)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ProgressHook, 'after_train_iter', stop)
        experiment.train('plain', cfg)
    again = experiment.train('plain', cfg)
    first, second = (read_state_dict(one.checkpoint) for one in (found['plain'], again))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_other_settings_in_the_same_folder_are_refused(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    root, _ = trained
    with pytest.raises(SetupError, match='another --out'):
        folder.Experiment(root / 'photos', root / 'out', *models(root), image_size=64, iterations=36).teacher()


def test_the_folder_of_another_training_is_left_as_it_is(
    trained: tuple[Path, dict[str, folder.Trained]], tmp_path: Path
) -> None:
    root, _ = trained
    other = photos.folder(tmp_path / 'photos', train=9, val=4)
    photos.photo(other / 'train' / 'blue' / 'large.png', (20, 40, 180), 0, (640, 480))

    def files() -> dict[Path, bytes]:
        found = (path for path in (root / 'out').rglob('*') if path.is_file() and path.suffix != '.log')  # still open
        return {path: path.read_bytes() for path in found}

    before = files()
    with pytest.raises(SetupError, match=r'train\.txt lists other photos.* another --out'):
        folder.Experiment(other, root / 'out', *models(root), image_size=32, iterations=36)
    assert files() == before


def test_each_method_has_a_model_of_its_own(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    _, found = trained
    for name in ('fnkd', 'plain'):
        weights = read_state_dict(found[name].folder / f'{MODEL}.safetensors')
        expected = read_state_dict(found[name].checkpoint)
        assert set(weights) == set(expected) and all(torch.equal(weights[key], expected[key]) for key in weights)
        modes = {(found[name].folder / f'{MODEL}.{suffix}').stat().st_mode for suffix in ('safetensors', 'json')}
        assert len(modes) == 1


def test_the_model_is_timms_and_predicts(trained: tuple[Path, dict[str, folder.Trained]], capsys) -> None:
    root, found = trained
    file = root / 'out' / 'fnkd' / f'{MODEL}.safetensors'
    timm.create_model(MODEL, num_classes=3, checkpoint_path=str(file))
    chosen = sorted((root / 'photos' / 'val').rglob('*.jpg'))
    rows = list(bundle.predict(root / 'out' / 'fnkd', chosen))
    right = sum(next(iter(row['classes'])) == path.parent.name for row, path in zip(rows, chosen, strict=True))
    assert 100 * right / len(chosen) == pytest.approx(found['fnkd'].accuracy)
    assert all(sum(row['classes'].values()) == pytest.approx(1, abs=1e-3) for row in rows)


def test_the_documented_code_predicts_as_the_command_does(
    trained: tuple[Path, dict[str, folder.Trained]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = trained
    page = (Path(__file__).resolve().parents[2] / 'docs' / 'get_started.md').read_text()
    (code,) = [block for block in re.findall('```python\n(.*?)```', page, re.DOTALL) if 'create_transform' in block]
    student = tmp_path / 'work_dirs' / 'birds_resnet18' / 'fnkd'
    shutil.copytree(root / 'out' / 'fnkd', student)
    for suffix in ('safetensors', 'json'):
        (student / f'{MODEL}.{suffix}').rename(student / f'resnet18.{suffix}')
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    with Image.open(root / 'photos' / 'val' / 'blue' / '1.jpg') as image:
        image.convert('L').save(tmp_path / 'photo.jpg', exif=exif)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    [row] = bundle.predict(student, [tmp_path / 'photo.jpg'])
    expected = dict(zip(names['about']['classes'], names['probabilities'][0].tolist(), strict=True))
    assert row['classes'] == pytest.approx(expected, abs=1e-3)


def test_photos_are_turned_as_in_training(tmp_path: Path) -> None:
    """Phones store photos on their side, with EXIF data that say so."""
    model = bundle.Bundle(MODEL, ['a', 'b'], 32, [0.5] * 3, [0.5] * 3)
    with Image.open(photos.photo(tmp_path / 'one.png', (200, 10, 10), 0)) as image:
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn clockwise
        image.save(tmp_path / 'turned.png', exif=exif)
        image.rotate(-90, expand=True).save(tmp_path / 'upright.png')
    assert torch.equal(model.pixels(tmp_path / 'turned.png'), model.pixels(tmp_path / 'upright.png'))
    assert mmcv.imread(tmp_path / 'turned.png').shape == mmcv.imread(tmp_path / 'upright.png').shape
    (tmp_path / 'not.png').write_bytes(b'x')
    with pytest.raises(SetupError, match='not'):
        model.pixels(tmp_path / 'not.png')


def test_onnx_gives_the_same_logits(trained: tuple[Path, dict[str, folder.Trained]], tmp_path: Path) -> None:
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    root, _ = trained
    assert bundle.export(root / 'out' / 'fnkd', tmp_path / 'model.onnx') < 1e-3
    with pytest.raises(SetupError, match='exists'):
        bundle.export(root / 'out' / 'fnkd', tmp_path / 'model.onnx')


def test_another_training_in_the_same_folder_is_named_by_what_differs(
    trained: tuple[Path, dict[str, folder.Trained]],
) -> None:
    root, _ = trained
    with pytest.raises(SetupError, match=r'teacher.py is of another training \(different: .*train_cfg'):
        folder.Experiment(root / 'photos', root / 'out', *models(root), image_size=32, iterations=12).teacher()


def test_predict_refuses_a_folder(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    root, _ = trained
    with pytest.raises(SetupError, match=r'is a folder; give its photos'):
        list(bundle.predict(root / 'out' / 'fnkd', [root / 'photos']))


def test_a_table_of_methods() -> None:
    rows = [
        compare.Row('plain', [50.0, 52.0], [0.0, 0.0], [60.0, 70.0]),
        compare.Row('kd', [55.0, 56.0], [5.0, 4.0], [80.0, 80.0]),
    ]
    titles, plain, kd, teacher = compare.table(rows, folder.Teacher({}, 60.0, 100.0))
    assert titles[2] == 'over plain' and plain == ('plain', '51.0 ± 1.4', '', '0:01:05')
    assert kd[2] == '+4.5 ± 6.4' and teacher == ('teacher', '60.0', '', '0:01:40')


def test_a_comparison_takes_what_is_trained_already(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    root, found = trained
    configs = sorted((root / 'out').rglob('*.py'))
    experiment = folder.Experiment(root / 'photos', root / 'out', *models(root), image_size=32, iterations=36)
    rows = compare.compare(experiment, ['plain', 'fnkd'], seeds=1)
    plain, fnkd = found['plain'].accuracy, found['fnkd'].accuracy
    assert [row.accuracies for row in rows] == [[plain], [fnkd]]
    assert rows[1].differences == [fnkd - plain]
    assert sorted((root / 'out').rglob('*.py')) == configs
    stored = json.loads((root / 'out' / 'compare.json').read_text())
    assert stored['teacher']['accuracy'] == found['teacher'].accuracy and stored['versions']['torch']
    assert [row['accuracies'] for row in stored['methods']] == [[plain], [fnkd]]


@pytest.mark.parametrize('accuracies', [{'a<b': [50.0]}, {'plain': [0.0, 0.0], 'fnkd': [100.0, 100.0]}])
def test_the_page_is_well_formed(accuracies: dict[str, list[float]]) -> None:
    text = page('t', 'about', [('method', 'top-1'), ('a<b', '50.0')], accuracies, 70.0)
    svg = ElementTree.fromstring(re.search(r'<svg.*</svg>', text)[0])
    dots = [float(dot.get('cx')) for dot in svg.iter('circle')]
    width = float(svg.get('viewBox').split()[2])
    assert len(dots) == sum(map(len, accuracies.values())) and all(0 < x < width for x in dots)
    assert 'a&lt;b' in text and 'a<b' not in text


def test_a_teacher_of_these_classes_is_used_as_it_is(
    trained: tuple[Path, dict[str, folder.Trained]], tmp_path: Path
) -> None:
    """A student of ``fnkd train`` teaches another, with its names in another order, without being trained again."""
    root, _ = trained
    shutil.copytree(root / 'out' / 'fnkd', ready := tmp_path / 'ready')
    about = json.loads((ready / f'{MODEL}.json').read_text())
    weights = safetensors.torch.load_file(ready / f'{MODEL}.safetensors')
    order = [2, 0, 1]
    classifier = {key: value[order] for key, value in weights.items() if key.startswith('fc.')}
    safetensors.torch.save_file({**weights, **classifier}, ready / f'{MODEL}.safetensors')
    (ready / f'{MODEL}.json').write_text(json.dumps({**about, 'classes': [about['classes'][k] for k in order]}))
    teacher = folder.Model(MODEL, str(ready / f'{MODEL}.safetensors'))
    experiment = folder.Experiment(
        root / 'photos', tmp_path / 'out', models(root)[0], teacher, image_size=32, iterations=4
    )
    found = experiment.teacher()
    assert found.seconds == 0 and not (tmp_path / 'out' / 'teacher').exists()
    assert found.accuracy == pytest.approx(trained[1]['fnkd'].accuracy, abs=1e-3)
    assert experiment.student('fnkd', found).checkpoint.is_file()


def test_a_teacher_no_better_than_chance_is_refused(
    trained: tuple[Path, dict[str, folder.Trained]], tmp_path: Path
) -> None:
    root, _ = trained
    weights = read_state_dict(trained[1]['fnkd'].checkpoint)
    torch.save(
        {key: value[[1, 2, 0]] if key.startswith('fc.') else value for key, value in weights.items()},
        file := tmp_path / 't.pth',
    )
    experiment = folder.Experiment(
        root / 'photos', tmp_path / 'out', models(root)[0], folder.Model(MODEL, str(file)), image_size=32, iterations=4
    )
    with pytest.raises(SetupError, match='chance'):
        experiment.teacher()


def test_what_decoders_print_is_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = photos.folder(tmp_path / 'photos', train=2, val=1)
    Image.new('RGB', (40, 40)).save(root / 'train' / 'blue' / 'profile.png', icc_profile=b'x' * 200)
    model, _ = models(tmp_path)
    experiment = folder.Experiment(root, tmp_path / 'out', model, model, image_size=32, iterations=4)
    experiment.train('plain', experiment.recipe.config(*dataclasses.astuple(model)))
    (log,) = (tmp_path / 'out').rglob('*.log')
    assert 'libpng' in log.read_text()
    assert 'libpng' not in capfd.readouterr().err


@pytest.mark.parametrize('size', [32, 96, 112])
def test_a_student_sees_photos_as_timm_prepares_them(size: int, tmp_path: Path) -> None:
    path = photos.photo(tmp_path / 'photo.png', (90, 120, 40), 0, (300, 200))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    ours = bundle.Bundle(MODEL, ['a', 'b'], size, mean, std).pixels(path)
    transform = timm.data.create_transform(size, interpolation='bicubic', crop_pct=7 / 8, mean=mean, std=std)
    with Image.open(path) as image:
        torch.testing.assert_close(ours, transform(image.convert('RGB')), atol=1e-6, rtol=0)


def test_large_photos_are_trained_on_by_their_copies(tmp_path: Path) -> None:
    root = photos.folder(tmp_path / 'photos', train=4, val=2)
    photos.photo(root / 'train' / 'blue' / 'large.png', (20, 40, 180), 0, (640, 480))
    experiment = folder.Experiment(root, tmp_path / 'out', *models(tmp_path), image_size=32, iterations=2)
    experiment.train('plain', experiment.recipe.config(*dataclasses.astuple(models(tmp_path)[0])))
    (copy,) = (tmp_path / 'out').rglob('large.png.jpg')
    dataset = Runner.from_cfg(train.load_config(tmp_path / 'out' / 'plain.py')).train_dataloader.dataset
    seen = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    assert str(copy) in seen and len(seen) == 13 and not any(path.endswith('large.png') for path in seen)


def test_one_iteration_is_enough(tmp_path: Path) -> None:
    root = photos.folder(tmp_path / 'photos', train=4, val=2)
    experiment = folder.Experiment(root, tmp_path / 'out', *models(tmp_path), image_size=32, iterations=1)
    assert experiment.student('fnkd', experiment.teacher()).checkpoint.name == 'iter_1.pth'


def test_results_are_json(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    _, found = trained
    stored = json.loads((found['fnkd'].folder / 'result.json').read_text())
    assert stored['accuracy'] == found['fnkd'].accuracy


def test_get_started_states_the_results_file() -> None:
    root = Path(__file__).resolve().parents[2]
    stored = json.loads((root / 'benchmarks' / 'folder_birds20.json').read_text())
    plain, fnkd = (compare.mean_std(row['accuracies']) for row in stored['methods'])
    text = ' '.join((root / 'docs' / 'get_started.md').read_text().split())
    predictions = stored['recipe']['iterations'] * stored['recipe']['batch_size']
    crops = math.ceil(predictions / stored['photos']['train'])
    for stated in (
        f'{crops} crops',
        f'plain student reaches {plain} %',
        f'FNKD student {fnkd} %',
        f'{stored["teacher"]["accuracy"]:.1f}',
        compare.gain(stored['methods'][1]['differences']).lstrip('+'),
    ):
        assert stated in text
    assert compare.gain(stored['methods'][1]['differences']) in (root / 'README.md').read_text()


def test_a_student_is_tested_by_its_config(
    trained: tuple[Path, dict[str, folder.Trained]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = trained
    student = found['fnkd']
    cli_test.main([str(student.config), str(student.checkpoint), '--work-dir', str(student.folder / 'tested')])
    shown = capsys.readouterr().out
    assert float(re.search(r'accuracy/top1 +([\d.]+)', shown)[1]) == pytest.approx(student.accuracy, abs=0.05)
    assert len(shown.splitlines()) < 6  # the log is in its file
    assert any((student.folder / 'tested').rglob('*.log'))


@pytest.mark.parametrize(
    ('weights', 'said'),
    [('test_vit', 'has no weights of test_resnet'), (MODEL, 'no classifier')],
    ids=['of another', 'right'],
)
def test_only_weights_of_another_model_are_called_so(weights: str, said: str, tmp_path: Path, monkeypatch) -> None:
    model = folder.Model(MODEL, str(timm_checkpoint(tmp_path, weights, num_classes=7)))
    if weights == MODEL:
        monkeypatch.setattr('fnkd_plugin.mm.models.timm_student.check_classifies', _refusing)
    root = photos.folder(tmp_path / 'photos', train=8, val=4)
    with pytest.raises(SetupError, match=said):
        folder.Experiment(root, tmp_path / 'out', model, model, image_size=32, iterations=4)


def _refusing(owner: str, model: torch.nn.Module) -> None:
    raise SetupError(f'{owner}: no classifier')
