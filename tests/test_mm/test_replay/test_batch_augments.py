import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from mmpretrain.models import ClsDataPreprocessor, Mixup
from mmpretrain.registry import BATCH_AUGMENTS
from mmpretrain.structures import DataSample

from fnkd_plugin.cache.fingerprint import differences
from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.replay.batch_augments import describe_mixing, replay_mixing
from fnkd_plugin.mm.replay.seeded_dataset import Stamp

MIXUP, CUTMIX = dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)
KINDS = {
    'Mixup': dict(augments=MIXUP),
    'CutMix': dict(augments=CUTMIX),
    'ResizeMix': dict(augments=dict(type='ResizeMix', alpha=1.0)),
    'one of several': dict(augments=[MIXUP, CUTMIX], probs=[0.5, 0.3]),
}


@BATCH_AUGMENTS.register_module(force=True)
class OwnGenerator:
    """Mixes by a generator that nobody can seed."""

    def __call__(self, inputs: torch.Tensor, scores: torch.Tensor) -> tuple:
        share = np.random.default_rng().random()
        return share * inputs + (1 - share) * inputs.flip(0), share * scores + (1 - share) * scores.flip(0)


@BATCH_AUGMENTS.register_module(force=True)
class EveryOther:
    """Mixes every second batch that it is given; ``options`` are kept."""

    def __init__(self, **options: Any) -> None:
        self.calls, self.options = 0, options

    def __call__(self, inputs: torch.Tensor, scores: torch.Tensor) -> tuple:
        self.calls += 1
        return (inputs.flip(0), scores.flip(0)) if self.calls % 2 else (inputs, scores)


@BATCH_AUGMENTS.register_module(force=True)
class Blend:
    """By a function that it is given."""

    def __init__(self, share: Any) -> None:
        self.share = share

    def __call__(self, inputs: torch.Tensor, scores: torch.Tensor) -> tuple:
        share = self.share()
        return share * inputs + (1 - share) * inputs.flip(0), share * scores + (1 - share) * scores.flip(0)


def _preprocessor(**augments: Any) -> ClsDataPreprocessor:
    return ClsDataPreprocessor(num_classes=4, batch_augments=copy.deepcopy(augments) or None)


def _batch(view: int = 1, batch: int = 2, stamped: bool = True) -> dict:
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    for i, sample in enumerate(samples if stamped else ()):
        sample.set_field(Stamp(view, i, 0, batch), 'stamp', field_type='metainfo')
    return dict(inputs=torch.arange(4 * 3 * 64).view(4, 3, 8, 8) % 251, data_samples=samples)


def _mixed(preprocessor: Any, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    data = preprocessor(batch, True)
    return data['inputs'], torch.stack([sample.gt_score for sample in data['data_samples']])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.upstream
def test_a_batch_is_mixed_alike_whatever_was_drawn_before(kind: str) -> None:
    preprocessor = _preprocessor(**KINDS[kind])
    replay_mixing(preprocessor, 7)
    found = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        found.append([_mixed(preprocessor, _batch(view, batch)) for view in range(3) for batch in range(3)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    unmixed = _batch()['inputs'].float()
    assert sum(not torch.equal(inputs, unmixed) for inputs, _ in found[0]) > 4
    assert len({inputs.numpy().tobytes() for inputs, _ in found[0]}) > 4


def test_the_generators_of_the_run_stay_where_they_are() -> None:
    preprocessor = _preprocessor(**KINDS['one of several'])
    replay_mixing(preprocessor, 7)

    def drawn(mix: bool) -> tuple:
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        if mix:
            _mixed(preprocessor, _batch())
        return random.random(), np.random.rand(), float(torch.rand(()))

    assert drawn(True) == drawn(False)


def test_validation_is_not_mixed_and_state_is_not_saved() -> None:
    preprocessor = _preprocessor(augments=MIXUP)
    before = list(preprocessor.state_dict())
    replay_mixing(preprocessor, 7)
    assert torch.equal(preprocessor(_batch(stamped=False))['inputs'], _batch()['inputs'].float())
    assert list(preprocessor.state_dict()) == before


def test_batches_that_are_not_replayed_are_refused() -> None:
    preprocessor = _preprocessor(augments=MIXUP)
    replay_mixing(preprocessor, 7)
    batch = _batch()
    _mixed(preprocessor, batch)
    assert batch['data_samples'][0].mixed
    with pytest.raises(RuntimeError, match='Mixup: these images are not a replayed batch'):
        preprocessor(_batch(stamped=False), True)
    two = _batch()
    two['data_samples'][0].set_field(Stamp(1, 0, 0, 3), 'stamp', field_type='metainfo')
    with pytest.raises(RuntimeError, match='are not a replayed batch'):
        preprocessor(two, True)


def test_a_second_call_sets_another_seed_and_none_undoes_it() -> None:
    preprocessor, fresh = _preprocessor(augments=MIXUP), _preprocessor(augments=MIXUP)
    for seed in (7, 8):
        replay_mixing(preprocessor, seed)
    replay_mixing(fresh, 8)
    assert torch.equal(_mixed(preprocessor, _batch())[0], _mixed(fresh, _batch())[0])
    original = fresh.batch_augments.augments
    replay_mixing(fresh, None)
    assert fresh.batch_augments is original and not fresh._forward_pre_hooks
    preprocessor(_batch(), True)
    replay_mixing(_preprocessor(), 7)  # nothing to replay


def test_a_copy_mixes_for_itself() -> None:
    preprocessor = _preprocessor(augments=MIXUP)
    replay_mixing(preprocessor, 7)
    other = copy.deepcopy(preprocessor)
    expected = _mixed(preprocessor, _batch())[0]
    _mixed(preprocessor, _batch(0, 0))
    assert torch.equal(_mixed(other, _batch())[0], expected)


def _description(seed: int = 7, size: int = 4, **augments: Any) -> Any:
    return describe_mixing(_preprocessor(**augments), seed, size)


def test_descriptions_differ_where_augmentations_do() -> None:
    mixup = _description(augments=MIXUP)
    assert mixup == _description(augments=[MIXUP]) and mixup['augments'] == ['Mixup(alpha=0.8)']
    assert _description() is None
    stronger = differences(mixup, _description(augments=dict(MIXUP, alpha=0.2)))
    assert stronger[0] == "augments[0]: 'Mixup(alpha=0.8)' in the cache, 'Mixup(alpha=0.2)' now"
    assert differences(mixup, _description(size=8, augments=MIXUP)) == ['batch_size: 4 in the cache, 8 now']
    several = [_description(augments=[MIXUP, CUTMIX], probs=probs) for probs in ([0.5, 0.3], [0.3, 0.5])]
    assert differences(*several)[0].startswith('probabilities[0]: 0.5 in the cache, 0.3 now')
    assert several[0]['augments'][2] == 'none'


def test_another_random_generator_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another version of torch, NumPy or MMPretrain might have."""
    before = _description(augments=MIXUP)
    permute = torch.randperm
    monkeypatch.setattr(torch, 'randperm', lambda count: permute(count).flip(0))
    assert [text.split(':')[0] for text in differences(before, _description(augments=MIXUP))] == ['draws']


def test_describing_is_exact_and_leaves_the_generators() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert _description(augments=CUTMIX) == _description(augments=CUTMIX)
    assert torch.equal(torch.rand(2), expected)
    assert _description(seed=8, augments=CUTMIX)['draws'] != _description(augments=CUTMIX)['draws']


def test_augmentations_that_are_not_repeatable_are_refused() -> None:
    with pytest.raises(SetupError, match='OwnGenerator is not repeatable'):
        _description(augments=dict(type='OwnGenerator'))
    with pytest.raises(SetupError, match='EveryOther is not repeatable: it depends on earlier batches'):
        _description(augments=dict(type='EveryOther'))


def test_an_augmentation_is_described_without_addresses() -> None:
    [text] = _description(augments=dict(type='Blend', share=lambda: 0.25))['augments']
    assert text.startswith('Blend(share=<function ') and ' at 0x' not in text


def test_describing_leaves_the_augmentation_as_it_was() -> None:
    preprocessor = _preprocessor(augments=dict(type='Counting', alpha=0.8))
    found = [describe_mixing(preprocessor, 7, 4) for _ in range(2)]
    assert found[0] == found[1] and found[0]['augments'] == ['Counting(alpha=0.8, calls=0)']


@BATCH_AUGMENTS.register_module(force=True)
class Counting(Mixup):
    """Mixup that counts its batches, to no effect."""

    def __init__(self, alpha: float) -> None:
        super().__init__(alpha)
        self.calls = 0

    def __call__(self, inputs: torch.Tensor, scores: torch.Tensor) -> tuple:
        self.calls += 1
        return super().__call__(inputs, scores)


def test_what_cannot_mix_is_named() -> None:
    with pytest.raises(SetupError, match=r'Blend cannot mix 4 images of \[3, 224, 224\]: no share'):
        _description(augments=dict(type='Blend', share=_fail))


def _fail() -> float:
    raise ValueError('no share')
