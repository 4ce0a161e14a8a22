"""The named tables: fair, and on configs that exist."""

import pytest
from mmengine.config import Config

NAMES = ['digits', 'cub2010']


@pytest.mark.parametrize('name', NAMES)
def test_every_method_has_as_many_trials_and_its_own_config(name: str) -> None:
    from experiments.tables import CONFIGS, TABLES

    assert set(TABLES) == set(NAMES)
    table = TABLES[name]()
    assert len({len(m.trials) for m in table.methods}) == 1
    assert all((CONFIGS / m.config).is_file() for m in table.methods) and (CONFIGS / table.teacher).is_file()
    assert len({m.title for m in table.methods}) == len(table.methods)
    for method in table.methods:
        assert set().union(*method.trials) >= set(method.symbols)
        assert len({str(trial) for trial in method.trials}) == len(method.trials)


@pytest.mark.parametrize('name', NAMES)
def test_no_trial_is_scored_on_the_test_set(name: str) -> None:
    from experiments.tables import CONFIGS, TABLES

    table = TABLES[name]()
    for method in table.methods:
        cfg = Config.fromfile(CONFIGS / method.config)
        cfg.merge_from_dict(dict(table.trial_options))
        scored, learned = cfg.val_dataloader.dataset, cfg.train_dataloader.dataset
        assert scored.split != 'test'
        # Nor on what it learns from.
        assert scored.split != learned.split or (scored.part, learned.part) == ('tune', 'fit')


@pytest.mark.parametrize('count', range(1, 13))
def test_a_latin_square_pairs_every_weight_with_one_learning_rate(count: int) -> None:
    from experiments.tables import latin_order, spread

    assert sorted(latin_order(count)) == list(range(count))
    assert len(set(spread(1, 30, count))) == count


def test_chosen_names_what_was_tuned() -> None:
    from experiments.tables import LR, WEIGHT, Method

    method = Method('KD', '', (), {LR: 'lr', WEIGHT: 'α'})
    assert method.chosen({LR: 0.02, WEIGHT: 0.9, 'other': 1}) == 'lr 0.02, α 0.9'
