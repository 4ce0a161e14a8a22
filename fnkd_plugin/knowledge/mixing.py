"""Mixup, CutMix and the like, which mix the images of a batch after they were loaded, in the same way again."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fnkd_plugin.datasets.seeded_dataset import derive_seed, seed_all
from fnkd_plugin.errors import SetupError
from fnkd_plugin.rng import isolated_rng

_TRIALS = 16
"""Batches that are mixed to learn how: enough that each augmentation of a usual choice has its turn."""

_TRIAL_SHAPE = (4, 3, 32, 32)

Augments = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def batch_augments_of(preprocessor: Any) -> Any:
    """What mixes the images of a batch in a data preprocessor, as its config built it, or None."""
    augments = getattr(preprocessor, 'batch_augments', None)
    return augments.augments if isinstance(augments, ReplayedAugments) else augments


def names_of(augments: Any) -> str:
    """The kinds of augmentations, such as ``'Mixup, CutMix'``."""
    return ', '.join(type(one).__name__ for one in _members(augments) if one is not None)


class ReplayedAugments:
    """Batch augmentations whose numbers depend on nothing but (seed, view, batch).

    The generators of the run are left where they are.

    Args:
        augments: What mixes.
        seed: 64 bits, see :func:`~fnkd_plugin.datasets.seeded_dataset.data_seed`.
    """

    def __init__(self, augments: Augments, seed: int) -> None:
        self.augments = augments
        self._seed = seed
        self._key: tuple[int, int] | None = None
        self._hook: RemovableHandle | None = None

    def attach(self, preprocessor: nn.Module) -> None:
        """Mix what this data preprocessor is given from now on."""
        preprocessor.batch_augments = self  # type: ignore[assignment]
        self._hook = preprocessor.register_forward_pre_hook(self._look, with_kwargs=True)

    def detach(self, preprocessor: nn.Module) -> None:
        """Leave it as it was."""
        if self._hook is not None:
            self._hook.remove()
        preprocessor.batch_augments = self.augments  # type: ignore[assignment]

    def _look(self, preprocessor: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # Which batch comes, by the stamps of its samples.
        data = args[0] if args else kwargs['data']
        stamps = [getattr(sample, 'stamp', None) for sample in data.get('data_samples') or ()]
        keys = {None if stamp is None else (stamp.view, stamp.batch) for stamp in stamps}
        self._key = keys.pop() if len(keys) == 1 else None

    def __call__(self, inputs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the batch that was looked at."""
        if self._key is None:
            raise RuntimeError(
                f'{names_of(self.augments)}: these images are no batch of the replayed ones, and so cannot be mixed as '
                'their teacher saw them.'
            )
        return self.mix(inputs, scores, *self._key)

    def mix(self, inputs: Tensor, scores: Tensor, view: int, batch: int) -> tuple[Tensor, Tensor]:
        """Mix any images as those of a batch of a view."""
        with isolated_rng():
            seed_all(derive_seed(self._seed, view, batch))
            return self.augments(inputs, scores)


def replay_mixing(preprocessor: nn.Module, seed: int | None) -> None:
    """Let a data preprocessor mix by :class:`ReplayedAugments`, in place; if ``seed`` is None, as its config says."""
    known: Any = getattr(preprocessor, 'batch_augments', None)
    if isinstance(known, ReplayedAugments):
        known.detach(preprocessor)
    augments = batch_augments_of(preprocessor)
    if seed is not None and augments is not None:
        ReplayedAugments(augments, seed).attach(preprocessor)


def describe_mixing(preprocessor: nn.Module, seed: int, batch_size: int) -> dict[str, Any] | None:
    """How a data preprocessor mixes batches, in words and by what becomes of trial batches; None if it does not.

    Args:
        preprocessor: Of the student.
        seed: 64 bits, of the replayed mixing.
        batch_size: Images that are mixed together.

    Raises:
        SetupError: If it mixes otherwise the next time.
    """
    augments = batch_augments_of(preprocessor)
    if augments is None:
        return None
    draws = _draws(augments, seed)
    if draws != _draws(augments, seed):
        raise SetupError(
            f"{names_of(augments)} mixes otherwise each time, by a generator that is neither NumPy's, torch's nor "
            "Python's common one, and so cannot be replayed; train with a live teacher."
        )
    probabilities = getattr(augments, 'probs', None)
    return dict(
        batch_size=batch_size,
        augments=[_words(one) for one in _members(augments)],
        probabilities=None if probabilities is None else [round(float(p), 6) for p in probabilities],
        draws=draws,
    )


def _members(augments: Any) -> list[Any]:
    return list(getattr(augments, 'augments', [augments]))


def _words(augment: Any) -> str:
    if augment is None:
        return 'none'
    options = ', '.join(f'{name}={value!r}' for name, value in sorted(vars(augment).items()))
    return f'{type(augment).__name__}({options})'


def _draws(augments: Augments, seed: int) -> str:
    """A checksum of trial batches, in which each image is one number, and so shows who was mixed, where and how."""
    replayed, digest = ReplayedAugments(augments, seed), sha256()
    count = _TRIAL_SHAPE[0]
    for batch in range(_TRIALS):
        images = torch.arange(float(count)).view(-1, 1, 1, 1).expand(_TRIAL_SHAPE).clone()
        for mixed in replayed.mix(images, torch.eye(count), 0, batch):
            # Rounded: interpolation may differ in the last bit from machine to machine.
            digest.update((mixed.double() * 1000).round().long().numpy().tobytes())
    return digest.hexdigest()
