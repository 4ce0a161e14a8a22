"""Groups proposed from a teacher's confusions."""

from pathlib import Path

import pytest
import torch

from fnkd_plugin.errors import SetupError
from fnkd_plugin.losses import ALSRLoss
from fnkd_plugin.taxonomy import groups_from_confusions, off_target_mass, taxonomy_of, write_groups

pytestmark = pytest.mark.upstream

MASS = torch.tensor([[9.0, 0.3, 0.1, 0.0], [0.0, 9.0, 0.2, 0.2], [0.0, 0.0, 9.0, 0.0], [0.1, 0.5, 0.4, 0.0]])


def test_off_target_mass_is_the_mean_of_each_true_class() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.2, 0.1, 0.7]])
    mass = off_target_mass(p, torch.tensor([0, 0, 1]))
    expected = torch.tensor([[0, 0.2, 0.1], [0.2, 0, 0.7], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(mass, expected, rtol=0, atol=1e-7)


def test_off_target_mass_does_not_depend_on_how_many_images_a_class_has() -> None:
    p, labels = torch.randn(30, 5).softmax(1), torch.randint(5, (30,))
    again = labels == 2
    torch.testing.assert_close(
        off_target_mass(torch.cat([p, p[again]]), torch.cat([labels, labels[again]])), off_target_mass(p, labels)
    )


def test_the_most_confused_classes() -> None:
    assert groups_from_confusions(MASS, top=1) == [[1], [2], [], [1]]
    assert groups_from_confusions(MASS, top=3) == [[1, 2], [2, 3], [], [1, 2, 0]]
    assert groups_from_confusions(MASS, share=0.3) == [[1], [2, 3], [], [1, 2]]
    assert groups_from_confusions(MASS, share=0.6) == [[1], [], [], []]


def test_renaming_the_classes_renames_the_groups() -> None:
    mass, order = torch.rand(6, 6), torch.tensor([3, 0, 5, 1, 4, 2])
    plain, moved = (groups_from_confusions(m, top=2) for m in (mass, mass[order][:, order]))
    assert [[int(order[k]) for k in near] for near in moved] == [plain[k] for k in order]


def test_planted_groups_are_found_and_train(tmp_path: Path) -> None:
    """A teacher that confuses within known groups: from logits to a loss, through a file."""
    keys = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    labels = torch.arange(7).repeat(40)
    same = (keys[labels][:, None] == keys).double()
    logits = 2 * same + torch.eye(7)[labels] + 0.1 * torch.randn(len(labels), 7)
    found = groups_from_confusions(off_target_mass(logits.softmax(1), labels), share=0.25)
    assert [sorted(near) for near in found] == taxonomy_of(keys.tolist()).neighbours
    names = [f'bird_{k}' for k in range(7)]
    write_groups(tmp_path / 'near.json', names, found)
    loss = ALSRLoss(groups=str(tmp_path / 'near.json'))
    targets = [one.target(labels, 7) for one in (loss, ALSRLoss(groups=keys.tolist()))]
    torch.testing.assert_close(*targets)
    assert loss.taxonomy.classes == names


@pytest.mark.parametrize(
    ('mass', 'options', 'message'),
    [
        (MASS[:3], dict(top=1), r'K x K, finite and >= 0, but is \(3, 4\)'),
        (MASS / 0, dict(top=1), 'finite'),
        (MASS, {}, 'either top or share'),
        (MASS, dict(top=1, share=0.1), 'either top or share'),
        (MASS, dict(top=0), 'top must be an integer >= 1, but is 0'),
        (MASS, dict(share=1.0), 'share must be a finite number > 0 and < 1'),
    ],
)
def test_wrong_input_is_refused(mass: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        groups_from_confusions(mass, **options)
