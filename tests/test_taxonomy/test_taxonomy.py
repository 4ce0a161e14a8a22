"""Class names -> A(x): rules against the official names, files, lists, and what is refused."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmpretrain.datasets import CIFAR100, CUB, StanfordCars

from fnkd_plugin.errors import SetupError
from fnkd_plugin.taxonomy import Taxonomy, taxonomy_of, write_groups
from fnkd_plugin.taxonomy.rules import RULES
from fnkd_plugin.taxonomy.taxonomy import groups_of_classes

pytestmark = pytest.mark.upstream

NAMES = Path(os.environ.get('FNKD_DATA', 'no such folder')) / 'class_names'
BIRDS = ['Herring_Gull', 'Ivory_Gull', 'Mallard', 'Arctic_Tern', 'Western_Gull', 'Least_Tern']
NEAR_BIRDS = [[1, 4], [0, 4], [], [5], [0, 1], [3]]


def _mutual(neighbours: list[list[int]]) -> bool:
    return all(k in neighbours[j] for k, near in enumerate(neighbours) for j in near)


# Ready-made taxonomies


@pytest.mark.parametrize(
    ('name', 'dataset', 'with_neighbours'),
    [
        ('cub', CUB, 167),
        ('cifar100', CIFAR100, 100),
        ('cars_make', StanfordCars, 177),
        ('cars_body', StanfordCars, 182),
    ],
)
def test_ready_made_taxonomies_hold_the_data_sets_classes(name: str, dataset: Any, with_neighbours: int) -> None:
    taxonomy = taxonomy_of(name)
    assert taxonomy.classes == list(dataset.METAINFO['classes'])
    assert sum(map(bool, taxonomy.neighbours)) == with_neighbours
    assert f'{with_neighbours} of {len(taxonomy.classes)} classes have neighbours' in str(taxonomy)
    assert _mutual(taxonomy.neighbours)
    assert all(k not in near and near == sorted(set(near)) for k, near in enumerate(taxonomy.neighbours))


@pytest.mark.parametrize(
    ('groups', 'name', 'near'),
    [
        ('cub', 'Laysan_Albatross', {'Black_footed_Albatross', 'Sooty_Albatross'}),
        ('cub', 'Mallard', set()),
        ('cifar100', 'baby', {'boy', 'girl', 'man', 'woman'}),
        ('cifar100', 'lawn_mower', {'rocket', 'streetcar', 'tank', 'tractor'}),
        ('cars_make', 'Land Rover LR2 SUV 2012', {'Land Rover Range Rover SUV 2012'}),
        ('cars_make', 'Ram C/V Cargo Van Minivan 2012', set()),
        (
            'cars_body',
            'Ram C/V Cargo Van Minivan 2012',
            {
                'Chrysler Town and Country Minivan 2012',
                'Dodge Caravan Minivan 1997',
                'Ford Freestar Minivan 2007',
                'Honda Odyssey Minivan 2012',
                'Honda Odyssey Minivan 2007',
            },
        ),
    ],
)
def test_who_is_near_whom(groups: str, name: str, near: set[str]) -> None:
    taxonomy = taxonomy_of(groups)
    assert taxonomy.classes is not None
    found = taxonomy.neighbours[taxonomy.classes.index(name)]
    assert {taxonomy.classes[k] for k in found} == near


@pytest.mark.skipif(not NAMES.is_dir(), reason='FNKD_DATA holds no class_names')
@pytest.mark.parametrize(
    ('file', 'groups'), [('cub200_2011', 'cub'), ('stanford_cars', 'cars_make'), ('stanford_cars', 'cars_body')]
)
def test_official_names_give_the_same(file: str, groups: str) -> None:
    rule = dict(cub='last_word', cars_make='make', cars_body='body_type')[groups]
    assert taxonomy_of(dict(rule=rule, classes=str(NAMES / f'{file}.txt'))).neighbours == taxonomy_of(groups).neighbours


@pytest.mark.skipif(not NAMES.is_dir(), reason='FNKD_DATA holds no class_names')
def test_our_table_of_superclasses_is_the_official_one() -> None:
    assert taxonomy_of(str(NAMES / 'cifar100.txt')).neighbours == taxonomy_of('cifar100').neighbours
    pairs = [line.split('\t') for line in (NAMES / 'cifar100.txt').read_text().splitlines()]
    assert [RULES['superclass'](name.replace('_', ' ')) for name, _ in pairs] == [group for _, group in pairs]


# Rules


@pytest.mark.parametrize(
    ('name', 'body'),
    [
        ('Acura RL Sedan 2012', 'Sedan'),
        ('Infiniti G Coupe IPL 2012', 'Coupe'),
        ('Ford Ranger SuperCab 2011', 'Cab'),
        ('Chevrolet Silverado 1500 Classic Extended Cab 2007', 'Cab'),
        ('Dodge Dakota Club Cab 2007', 'Cab'),
        ('HUMMER H2 SUT Crew Cab 2009', 'Cab'),
        ('Ford E-Series Wagon Van 2012', 'Van'),
        ('Ram C/V Cargo Van Minivan 2012', 'Minivan'),
        ('Dodge Caravan Minivan 1997', 'Minivan'),
        ('AM General Hummer SUV 2000', 'SUV'),
        *((f'{name} 2012', None) for name in ('Chevrolet HHR SS', 'Dodge Challenger SRT8', 'FIAT 500 Abarth')),
        *((f'{name} 2012', None) for name in ('Acura Integra Type R', 'Jaguar XK XKR', 'Chevrolet Corvette ZR1')),
    ],
)
def test_body_types_are_the_body_words_in_a_name(name: str, body: str | None) -> None:
    assert RULES['body_type'](name) == body


def test_body_types_of_all_cars_are_bodies_or_unknown() -> None:
    bodies = [RULES['body_type'](name) for name in StanfordCars.METAINFO['classes']]
    counts = {body: bodies.count(body) for body in set(bodies)}
    assert counts == {
        'Sedan': 46, 'SUV': 34, 'Convertible': 26, 'Coupe': 26, 'Cab': 18, 'Hatchback': 13, 'Van': 7, 'Wagon': 6,
        'Minivan': 6, None: 14,
    }  # fmt: skip


def test_classes_without_a_group_are_near_none() -> None:
    names = ['Audi TT Coupe 2011', 'Chevrolet HHR SS 2010', 'Chevrolet Cobalt SS 2010', 'BMW M6 Coupe 2010']
    assert taxonomy_of(dict(rule='body_type', classes=names)).neighbours == [[3], [], [], [0]]
    assert taxonomy_of(['a', None, None, 'a']).neighbours == [[3], [], [], [0]]


@pytest.mark.parametrize('groups', ['cub', dict(rule='last_word')])
def test_a_rule_is_applied_to_any_subset_of_the_classes(groups: Any) -> None:
    assert (
        taxonomy_of(groups_of_classes(groups, BIRDS[:3])).neighbours
        == taxonomy_of(dict(rule='last_word', classes=BIRDS[:3])).neighbours
    )


@pytest.mark.parametrize('groups', [[0, 0, 1], dict(rule='make', classes=['a', 'b']), 'a.json', None])
def test_groups_with_classes_of_their_own_keep_them(groups: Any) -> None:
    assert groups_of_classes(groups, BIRDS) == groups
    assert groups_of_classes('cub', 'CUB') == 'cub'


@pytest.mark.parametrize('prefix', ['', '{:03}.'])
@pytest.mark.parametrize('blank', ['_', ' '])
def test_names_may_have_underscores_blanks_and_cubs_numbers(prefix: str, blank: str) -> None:
    names = [prefix.format(i) + name.replace('_', blank) for i, name in enumerate(BIRDS, 1)]
    assert taxonomy_of(dict(rule='last_word', classes=names)).neighbours == NEAR_BIRDS


def test_a_function_is_a_rule() -> None:
    assert taxonomy_of(dict(rule=lambda name: name[0], classes=BIRDS)).neighbours == [[], [], [], [], [], []]
    assert taxonomy_of(dict(rule=lambda name: str(len(name) > 10), classes=BIRDS)).neighbours[0] == [3, 4]


def test_names_come_from_a_text_file(tmp_path: Path) -> None:
    (tmp_path / 'names.txt').write_text('\n'.join(BIRDS) + '\n\n')
    assert taxonomy_of(dict(rule='last_word', classes=str(tmp_path / 'names.txt'))).neighbours == NEAR_BIRDS


# Files and lists


@pytest.mark.parametrize('separator', ['\t', '  '])
def test_a_file_of_two_columns(tmp_path: Path, separator: str) -> None:
    file = tmp_path / 'groups.txt'
    file.write_text('\n'.join(f'{name.replace("_", " ")}{separator}{name.split("_")[-1]}' for name in BIRDS) + '\n')
    assert taxonomy_of(file).neighbours == taxonomy_of(str(file)).neighbours == NEAR_BIRDS


def test_lists_that_are_not_mutual_survive_a_file(tmp_path: Path) -> None:
    lists = [[4, 1], [0], [], [5], [2], []]
    write_groups(tmp_path / 'near.json', BIRDS, lists)
    assert taxonomy_of(str(tmp_path / 'near.json')) == Taxonomy(lists, BIRDS)


def test_lists_of_groups_and_of_indices() -> None:
    keys = ['gull', 'gull', 'duck', 'tern', 'gull', 'tern']
    assert (
        taxonomy_of(keys).neighbours == taxonomy_of([len(key) * ord(key[0]) for key in keys]).neighbours == NEAR_BIRDS
    )
    assert taxonomy_of(NEAR_BIRDS).neighbours == NEAR_BIRDS
    assert taxonomy_of([(np.int64(1),), ()]).neighbours == [[1], []]
    assert taxonomy_of(keys).classes is None
    assert taxonomy_of(taxonomy_of(keys)) == taxonomy_of(keys)


# The groups' classes against others


GULLS = taxonomy_of(dict(rule='last_word', classes=['Red Gull', 'Wren', 'Blue Gull']))


@pytest.mark.parametrize('taxonomy', [GULLS, taxonomy_of(['a', 'b', 'a'])])
def test_the_same_classes_fit_however_they_are_written(taxonomy: Taxonomy) -> None:
    taxonomy.check_classes(['001.Red_Gull', '002.Wren', '003.Blue_Gull'], 'data')


def test_other_classes_are_named_with_their_places() -> None:
    with pytest.raises(SetupError, match=r"data: its .* the groups \(0: 'Wren', not 'Red Gull', 1: 'Red Gull', not"):
        GULLS.check_classes(['Wren', 'Red Gull', 'Blue Gull'], 'data')
    with pytest.raises(SetupError, match='data has 2 classes, but the groups have 3'):
        GULLS.check_classes(['Wren', 'Gull'], 'data')


# What is refused, with the offending entries


def _letters(name: str) -> list[str]:
    return list(name)


def _second_word(name: str) -> str:
    return name.split()[1]


@pytest.mark.parametrize(
    ('groups', 'message'),
    [
        ('dogs', "'dogs' is not one of cub, cifar100, cars_make, cars_body, and there is no such file"),
        ([], 'groups must be one of cub, .* but are'),
        (7, 'groups must be one of cub, .* but are 7'),
        (dict(rule='make'), r'dict\(rule=\.\.\., classes=\.\.\.\)'),
        (
            dict(rule='first', classes='CUB'),
            "rule must be one of last_word, make, body_type, superclass, or a function, but is 'first'",
        ),
        (dict(rule='make', classes='Nowhere'), "'Nowhere' is neither a text file nor a registered data set"),
        (dict(rule='make', classes='ImageNet21k'), "'ImageNet21k' is neither .* with classes in its METAINFO"),
        (dict(rule='make', classes=[]), 'no class names'),
        (dict(rule='make', classes=5), 'classes must be .* a list of names, but is 5'),
        (dict(rule=5, classes=['a', 'b']), 'rule must be one of last_word, .* or a function, but is 5'),
        (dict(rule=_letters, classes=['a b', 'c']), r'rule _letters fails for a b \(TypeError: unhashable'),
        (dict(rule=_second_word, classes=['a b', 'c_']), r'rule _second_word fails for c_ \(IndexError: list index'),
        (dict(rule='make', classes=['a b', '1.a_b', 'c']), 'have a b more than once'),
        (dict(rule='superclass', classes='CUB'), 'superclass fails for Black_footed_Albatross'),
        ([[1], [0, 2]], r'lists of 1 \(\[0, 2\]\)'),
        ([[1], [-1]], r'lists of 1 \(\[-1\]\)'),
        ([[1], ['c0']], r"lists of 1 \(\['c0'\]\)"),
        ([[0], [0]], r'lists of 0 \(\[0\]\)'),
        ([[1, 1], [0]], r'lists of 0 \(\[1, 1\]\)'),
    ],
)
def test_wrong_groups_are_refused_in_one_sentence(groups: Any, message: str) -> None:
    with pytest.raises(SetupError, match=message) as error:
        taxonomy_of(groups)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a\tx\nb\tx\na\ty\n', 'have a more than once'),
        ('a\nb\tx\nc\tx\n', 'has no group for a;'),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / 'groups.txt').write_text(text)
    with pytest.raises(SetupError, match=message):
        taxonomy_of(tmp_path / 'groups.txt')


@pytest.mark.parametrize('file', ['groups.txt', 'groups.json', 'names.txt'])
def test_files_are_in_utf_8_on_every_machine(tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / file
    groups = dict(rule='last_word', classes=str(path)) if file == 'names.txt' else str(path)
    text = '{"Möwe": [], "Ente": []}' if file == 'groups.json' else 'Möwe x\nEnte x'
    path.write_text(text, encoding='latin-1')
    with pytest.raises(SetupError, match=rf'{file} is not in UTF-8 \(byte \d+\); save it in UTF-8'):
        taxonomy_of(groups)
    path.write_text(text, encoding='utf-8')
    monkeypatch.setattr(io, 'text_encoding', lambda encoding, *_: encoding or 'ascii')
    assert [name.split()[0] for name in taxonomy_of(groups).classes] == ['Möwe', 'Ente']
    write_groups(tmp_path / 'written.json', ['Möwe', 'Ente'], [[1], [0]])
    assert taxonomy_of(tmp_path / 'written.json').classes == ['Möwe', 'Ente']


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', 'is not JSON'),
        ('[' * 100_000, 'is not JSON'),
        (json.dumps(['a']), 'not one JSON object'),
        (json.dumps(dict(a='b', b=[])), 'not one JSON object'),
        (json.dumps(dict(a=['b', 'c'], b=[])), 'near classes that it does not define: c'),
        (json.dumps(dict(a=['a'], b=[])), r'lists of a \(\[0\]\)'),
    ],
)
def test_wrong_json_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / 'groups.json').write_text(content)
    with pytest.raises(SetupError, match=message):
        taxonomy_of(str(tmp_path / 'groups.json'))
