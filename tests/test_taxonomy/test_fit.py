import pytest

from fnkd_plugin.errors import SetupError
from fnkd_plugin.taxonomy.fit import neighbours_for

pytestmark = pytest.mark.upstream

GROUPS = dict(rule=lambda name: name.split()[-1], classes=['Red Gull', 'Wren', 'Blue Gull'])


def test_groups_of_the_same_classes_fit_however_they_are_written() -> None:
    names = ['001.Red_Gull', '002.Wren', '003.Blue_Gull']
    assert neighbours_for(GROUPS, names, 'data') == [[2], [], [0]]
    assert neighbours_for([[1], [0]], ['any', 'name'], 'data') == [[1], [0]]


def test_other_classes_are_named_with_their_places() -> None:
    with pytest.raises(SetupError, match=r"data: its classes are not those of the groups .0: 'Wren', not 'Red Gull'"):
        neighbours_for(GROUPS, ['Wren', 'Red Gull', 'Blue Gull'], 'data')
    with pytest.raises(SetupError, match='data has 2 classes, the groups are of 3'):
        neighbours_for(GROUPS, ['Wren', 'Gull'], 'data')
