"""Repeatable Mixup, CutMix and other augmentations that mix the images of a batch."""

import copy
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fnkd_plugin.errors import SetupError
from fnkd_plugin.mm.replay.description import text_of
from fnkd_plugin.mm.replay.seeded_dataset import Replay, derive_seed, seed_all
from fnkd_plugin.rng import isolated_rng

_TRIALS = 16
"""Number of trial batches, enough to draw each augmentation of a common set."""

_TRIAL_SHAPE = (4, 3, 224, 224)

Augments = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def batch_augments_of(preprocessor: Any) -> Any:
    """The batch augmentations in a data preprocessor's config, or None."""
    augments = getattr(preprocessor, 'batch_augments', None)
    return augments.augments if isinstance(augments, ReplayedAugments) else augments


def names_of(augments: Any) -> str:
    """Class names of batch augmentations, such as ``'Mixup, CutMix'``."""
    return ', '.join(type(one).__name__ for one in _members(augments) if one is not None)


class ReplayedAugments:
    """Batch augmentations that depend on (seed, view, batch) alone; the run's random generators are not changed.

    Args:
        augments: The augmentations.
        seed: 64 bits, see :attr:`~fnkd_plugin.mm.replay.seeded_dataset.Replay.data_seed`.
    """

    def __init__(self, augments: Augments, seed: int) -> None:
        self.augments = augments
        self._seed = seed
        self._samples: Sequence[Any] = ()
        self._hook: RemovableHandle | None = None

    def attach(self, preprocessor: nn.Module) -> None:
        """Use these augmentations in a data preprocessor."""
        preprocessor.batch_augments = self  # type: ignore[assignment]
        self._hook = preprocessor.register_forward_pre_hook(self._keep_samples, with_kwargs=True)

    def detach(self, preprocessor: nn.Module) -> None:
        """Restore the data preprocessor's own augmentations."""
        if self._hook is not None:
            self._hook.remove()
        preprocessor.batch_augments = self.augments  # type: ignore[assignment]

    @torch.compiler.disable
    def _keep_samples(self, preprocessor: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        data = args[0] if args else kwargs['data']
        self._samples = data.get('data_samples') or ()

    # A compiled graph draws from generators of its own.
    @torch.compiler.disable
    def __call__(self, inputs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the batch of the current forward pass, and mark its first sample as ``mixed``."""
        stamps = [getattr(sample, 'stamp', None) for sample in self._samples]
        keys = {(stamp.view, stamp.batch) for stamp in stamps if stamp is not None}
        if len(keys) != 1 or None in stamps:
            raise RuntimeError(
                f'{names_of(self.augments)}: these images are not a replayed batch, and cannot be mixed as for '
                'the teacher.'
            )
        [(view, batch)] = keys
        mixed = self.mix(inputs, scores, view, batch)
        self._samples[0].set_field(True, 'mixed', field_type='metainfo')
        self._samples = ()
        return mixed

    def mix(self, inputs: Tensor, scores: Tensor, view: int, batch: int) -> tuple[Tensor, Tensor]:
        """Mix images as in the given batch and view."""
        with isolated_rng():
            seed_all(derive_seed(self._seed, view, batch))
            return self.augments(inputs, scores)


def replay_mixing(preprocessor: nn.Module, seed: int | None) -> None:
    """Make a data preprocessor use :class:`ReplayedAugments`, in place; without ``seed``, its own augmentations."""
    current: Any = getattr(preprocessor, 'batch_augments', None)
    if isinstance(current, ReplayedAugments):
        current.detach(preprocessor)
    augments = batch_augments_of(preprocessor)
    if seed is not None and augments is not None:
        ReplayedAugments(augments, seed).attach(preprocessor)


def check_mixing(replay: Replay, preprocessor: nn.Module) -> None:
    """Check that a data preprocessor has batch augmentations if and only if a cache's images are mixed.

    Raises:
        SetupError: If not.
    """
    augments = batch_augments_of(preprocessor)
    if augments is not None and replay.batch_size is None:
        raise SetupError(
            f"CachedTeacher: {names_of(augments)} mixes images of a batch, but the cache's teacher saw them unmixed; "
            'make a cache with this config, remove its batch augmentations, or train with the live teacher.'
        )
    if augments is None and replay.batch_size is not None:
        raise SetupError(
            "CachedTeacher: the cache's teacher saw mixed images, but the student's train_cfg or data preprocessor has "
            'no batch augmentations; add those of the cache, or make a cache with this config.'
        )


def describe_mixing(preprocessor: nn.Module, seed: int, batch_size: int) -> dict[str, Any] | None:
    """Options and checksums of trial batches of a data preprocessor's batch augmentations, or None without any.

    Args:
        preprocessor: The student's.
        seed: 64 bits, of the replayed mixing.
        batch_size: Number of images that are mixed together.

    Raises:
        SetupError: If the trial batches are not repeatable.
    """
    augments = batch_augments_of(preprocessor)
    if augments is None:
        return None
    draws = _draws(copy.deepcopy(augments), seed, range(_TRIALS))
    if draws != _draws(copy.deepcopy(augments), seed, reversed(range(_TRIALS)))[::-1]:
        raise SetupError(
            f'{names_of(augments)} is not repeatable: it depends on earlier batches, or draws from a generator '
            "other than NumPy's, torch's and Python's global ones; train with a live teacher."
        )
    probabilities = getattr(augments, 'probs', None)
    return dict(
        batch_size=batch_size,
        augments=[_description(one) for one in _members(augments)],
        probabilities=None if probabilities is None else [round(float(p), 6) for p in probabilities],
        draws=sha256(''.join(draws).encode()).hexdigest(),
    )


def _members(augments: Any) -> list[Any]:
    return list(getattr(augments, 'augments', [augments]))


def _description(augment: Any) -> str:
    if augment is None:
        return 'none'
    options = ', '.join(f'{name}={text_of(value)}' for name, value in sorted(getattr(augment, '__dict__', {}).items()))
    return f'{type(augment).__name__}({options})'


def _draws(augments: Augments, seed: int, batches: Iterable[int]) -> list[str]:
    """Checksums of trial batches. Each image has one value, so that they depend on which images are mixed, and how."""
    replayed, count = ReplayedAugments(augments, seed), _TRIAL_SHAPE[0]
    found = []
    for batch in batches:
        images = torch.arange(float(count)).view(-1, 1, 1, 1).expand(_TRIAL_SHAPE).clone()
        try:
            mixed = replayed.mix(images, torch.eye(count), 0, batch)
        except Exception as error:
            raise SetupError(
                f'{names_of(augments)} cannot mix {count} images of {list(_TRIAL_SHAPE[1:])}: {error}'
            ) from error
        # Rounded: interpolation may differ in the last bit between machines.
        rounded = [(part.double() * 1000).round().long().numpy().tobytes() for part in mixed]
        found.append(sha256(b''.join(rounded)).hexdigest())
    return found
