import json
from pathlib import Path

import pytest
import timm
import torch

from fnkd_plugin.cli import bundle, compare, folder, train
from fnkd_plugin.errors import SetupError
from tests.helpers import timm_checkpoint
from tests.test_cli import photos

MODEL = 'test_resnet'


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, folder.Trained]]:
    root = tmp_path_factory.mktemp('shop')
    weights = str(timm_checkpoint(root, MODEL, num_classes=7))
    found = folder.train_folder(
        photos.folder(root / 'photos', train=8, val=4), MODEL, MODEL, root / 'out', student_checkpoint=weights,
        teacher_checkpoint=weights, image_size=32, epochs=4, baseline=True,
    )  # fmt: skip
    return root, found


def test_colours_are_learned_and_every_file_is_there(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    _, found = trained
    assert set(found) == {'teacher', 'fnkd', 'plain'}
    assert all(one.best >= one.last >= 0 for one in found.values())
    assert found['teacher'].best > 40
    for one in found.values():
        assert one.config.is_file() and one.checkpoint.is_file()


def test_teacher_and_students_have_seeds_of_their_own(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    from mmengine.config import Config

    _, found = trained
    seeds = {name: Config.fromfile(one.config).randomness.seed for name, one in found.items()}
    assert seeds['fnkd'] == seeds['plain'] != seeds['teacher']


def test_a_second_call_trains_nothing(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    root, found = trained
    weights = str(timm_checkpoint(root, MODEL, num_classes=7))
    again = folder.train_folder(
        root / 'photos', MODEL, MODEL, root / 'out', student_checkpoint=weights, teacher_checkpoint=weights,
        image_size=32, epochs=4, baseline=True,
    )  # fmt: skip
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


def test_other_settings_in_the_same_folder_are_refused(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    root, _ = trained
    weights = str(timm_checkpoint(root, MODEL, num_classes=7))
    with pytest.raises(SetupError, match='another --out'):
        folder.train_folder(
            root / 'photos', MODEL, MODEL, root / 'out', student_checkpoint=weights, teacher_checkpoint=weights,
            image_size=64, epochs=4,
        )  # fmt: skip


def test_the_model_is_timms_and_predicts(trained: tuple[Path, dict[str, folder.Trained]], capsys) -> None:
    root, found = trained
    file = root / 'out' / f'{MODEL}.safetensors'
    timm.create_model(MODEL, num_classes=3, checkpoint_path=str(file))
    chosen = sorted((root / 'photos' / 'val').rglob('*.jpg'))
    rows = bundle.predict(root / 'out', chosen)
    right = sum(next(iter(row['classes'])) == path.parent.name for row, path in zip(rows, chosen, strict=True))
    assert 100 * right / len(chosen) == pytest.approx(found['fnkd'].best, abs=100 / len(chosen) + 1e-6)
    assert all(sum(row['classes'].values()) == pytest.approx(1, abs=1e-3) for row in rows)


def test_onnx_gives_the_same_logits(trained: tuple[Path, dict[str, folder.Trained]], tmp_path: Path) -> None:
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    root, _ = trained
    assert bundle.export(root / 'out', tmp_path / 'model.onnx') < 1e-3
    with pytest.raises(SetupError, match='exists'):
        bundle.export(root / 'out', tmp_path / 'model.onnx')


def test_a_table_of_methods(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    _, found = trained
    rows = [compare.Row('plain', [50.0, 52.0], [0.0, 0.0]), compare.Row('kd', [55.0, 56.0], [5.0, 4.0])]
    lines = compare.table(rows, found['teacher'])
    assert '51.0 ± 1.4' in lines[1] and '+4.5 ± 0.7' in lines[2]
    assert len({len(line) for line in lines[:3]} - {0}) <= 2


def test_a_comparison_takes_what_is_trained_already(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    root, found = trained
    weights = str(timm_checkpoint(root, MODEL, num_classes=7))
    configs = sorted((root / 'out').rglob('*.py'))
    rows = compare.compare(
        root / 'photos', MODEL, MODEL, ['plain', 'fnkd'], 1, root / 'out', student_checkpoint=weights,
        teacher_checkpoint=weights, image_size=32, epochs=4,
    )  # fmt: skip
    assert [row.accuracies for row in rows] == [[found['plain'].last], [found['fnkd'].last]]
    assert rows[1].differences == [found['fnkd'].last - found['plain'].last]
    assert sorted((root / 'out').rglob('*.py')) == configs
    assert 'data:image/png;base64' in (root / 'out' / 'compare.html').read_text()


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match='fnkt'):
        compare.compare(tmp_path, MODEL, MODEL, ['plain', 'fnkt'], 1, tmp_path / 'out')


def test_results_are_json(trained: tuple[Path, dict[str, folder.Trained]]) -> None:
    _, found = trained
    stored = json.loads((found['fnkd'].folder / 'result.json').read_text())
    assert stored['best'] == found['fnkd'].best
