"""The named tables: fair, and on configs that exist."""

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mmengine.config import Config
from rich.console import Console

if TYPE_CHECKING:
    from experiments.study import Study

TUNED = ['digits', 'cub2010', 'cub2010_small']
CIFAR100 = ['cifar100', 'cifar100_8x4', 'cifar100_60e']
SWEEPS = ['cub2010_small_sweep']
SHOWN = ['digits', 'cub2010', 'cub2010_small', 'cub2010_small_sweep', 'cifar100_60e']
TABLES = [*TUNED, *CIFAR100, *SWEEPS]


@pytest.mark.parametrize('name', TABLES)
def test_every_method_has_as_many_trials_and_its_own_config(name: str) -> None:
    from experiments import tables

    assert set(tables.TABLES) == set(TABLES)
    table = tables.TABLES[name]()
    counts = {len(method.trials) for method in table.methods}
    assert len(counts) == 1 and (counts != {1}) == (name in TUNED)
    assert (
        all((tables.CONFIGS / m.config).is_file() for m in table.methods) and (tables.CONFIGS / table.teacher).is_file()
    )
    assert len({method.title for method in table.methods}) == len(table.methods)
    for method in table.methods:
        assert len({str(trial) for trial in method.trials}) == len(method.trials)


def test_a_cache_has_a_view_for_each_epoch() -> None:
    from experiments import tables

    for table in (tables.cub2010_small(), tables.cub2010_small_sweep()):
        for method in table.methods:
            cfg = Config.fromfile(tables.CONFIGS / method.config)
            cfg.merge_from_dict(dict(table.final_options))
            assert cfg.train_cfg.max_epochs == table.cached_views


@pytest.mark.parametrize('name', [*TUNED, *SWEEPS])
def test_what_is_tuned_is_not_scored_on_the_test_set(name: str) -> None:
    from experiments import tables

    table = tables.TABLES[name]()
    for method in table.methods:
        cfg = Config.fromfile(tables.CONFIGS / method.config)
        cfg.merge_from_dict(dict(table.trial_options or table.final_options))
        scored, learned = cfg.val_dataloader.dataset, cfg.train_dataloader.dataset
        assert scored.split != 'test'
        # Nor on what it learns from: another split, another part, or the two ends of the training set.
        ends = learned.get('indices', 50000) - scored.get('indices', -50000) <= 50000
        assert scored.split != learned.split or (scored.get('part'), learned.get('part')) == ('tune', 'fit') or ends


@pytest.mark.parametrize('name', TABLES)
def test_every_option_reaches_its_place(name: str) -> None:
    """An option below a key that the config lacks would be merged in silence, and change nothing."""
    from experiments import tables

    from fnkd_plugin.cli.train import parse_args, read_config
    from fnkd_plugin.mm.config import merge_options

    table = tables.TABLES[name]()
    for method in table.methods:
        for trial in method.trials:
            cfg = read_config(parse_args([str(tables.CONFIGS / method.config), *method.flags]))
            before = cfg.to_dict()
            merge_options(cfg, {k: v for k, v in trial.items() if k != tables.LR})
            assert set(_dicts(cfg.to_dict())) == set(_dicts(before))


def _shown(name: str) -> 'Study':
    from experiments import tables
    from experiments.results import Results
    from experiments.study import Study

    results = Results(tables.CONFIGS.parent / 'benchmarks' / f'{name}.json')
    seeds = sorted({run['seed'] for title, run in results.runs.items() if '_seed' in title})
    return Study(tables.TABLES[name](), results, Path(), seeds)


@pytest.mark.parametrize('name', SHOWN)
def test_the_docs_show_the_results_file(name: str) -> None:
    from experiments import tables
    from experiments.readme import document_of
    from experiments.report import as_markdown

    document = document_of(tables.CONFIGS.parent, name).read_text()
    assert f'<!-- {name} -->\n{as_markdown(_shown(name))}\n<!-- /{name} -->' in document


@pytest.mark.parametrize('name', SHOWN)
def test_nothing_is_cut_in_a_terminal(name: str) -> None:
    from experiments.report import as_rich

    # The best epoch is a further column.
    console = Console(width=95 if name == 'cifar100_60e' else 80, file=StringIO())
    console.print(as_rich(_shown(name)))
    assert '…' not in console.file.getvalue()


@pytest.mark.parametrize('name', CIFAR100)
def test_the_cifar_tables_can_be_trained_side_by_side_at_one_recipe(name: str, tmp_path: Path) -> None:
    from experiments.results import Results
    from experiments.side_by_side.recipe import read
    from experiments.study import Study
    from experiments.tables import TABLES

    study = Study(TABLES[name](), Results(tmp_path / 'r.json'), tmp_path, range(1))
    recipes, students = zip(*(read(job) for m in study.table.methods for job in study.finals(m)), strict=True)
    recipe, _ = read(study.teacher)
    assert all(other == recipe for other in recipes)
    short = recipe.epochs // 60 == 1
    assert (recipe.milestones, recipe.epochs) == (((38, 45, 53), 60) if short else ((150, 180, 210), 240))
    assert [recipe.rate(epoch) for epoch in (0, recipe.milestones[0])] == pytest.approx([0.05, 0.005])
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (64, 0.9, 5e-4)
    control = students[4]
    kd = {**control.head.soft_loss, 'hard_weight': control.head.hard_weight}
    assert kd == dict(type='KDLoss', temperature=3, loss_weight=1, hard_weight=1)
    [warmup] = [s.head.warmup for s in students if s.head is not None and 'warmup' in s.head]
    assert warmup * 240 == 20


def _dicts(node: object, prefix: str = '') -> Iterator[str]:
    if isinstance(node, dict):
        yield prefix
        for key, child in node.items():
            yield from _dicts(child, f'{prefix}.{key}')


@pytest.mark.parametrize('count', range(1, 13))
def test_a_latin_square_pairs_every_weight_with_one_learning_rate(count: int) -> None:
    from experiments.tables import latin_order, spread

    assert sorted(latin_order(count)) == list(range(count))
    assert len(set(spread(1, 30, count))) == count


def test_chosen_names_what_was_tuned() -> None:
    from experiments.tables import HARD, LR, WEIGHT, Method

    kd = Method('KD', '', ({LR: 0.01}, {LR: 0.02, WEIGHT: 0.9, HARD: 0.1, 'other': 1}))
    assert kd.chosen(1) == 'lr 0.02, α 0.9'
    assert Method('FNKD', '', ({LR: 0.01, WEIGHT: 9.0}, {})).chosen(0) == 'lr 0.01, λ² 9'
    assert Method('plain', '', ({LR: 0.01},)).chosen(0) == ''
