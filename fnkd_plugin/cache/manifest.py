"""The schema of a cache's ``manifest.json``."""

from typing import Any

from fnkd_plugin.errors import SetupError

DTYPES = ('float16', 'float32')

_COUNT = range(1, 2**31)
_MISSING = object()
_SCHEMA: dict[str, Any] = dict(
    format=_COUNT,
    checksum=str,
    seed=range(-(2**63), 2**64),
    views=_COUNT,
    dtype=DTYPES,
    top_k=(None, _COUNT),
    image=[_COUNT],
    origin=(None, [float]),
    data=dict(dataset=str, samples=_COUNT, annotations=str, classes=[str], pipeline=[str]),
    mixing=(None, dict(batch_size=_COUNT, augments=[str], probabilities=(None, [float]), draws=str)),
    teacher=dict(
        name=str,
        config=dict(),
        weights=str,
        num_classes=range(1, 2**24),
        feature_norm=bool,
        classes=(None, [str]),
        class_ids=(None, [str]),
    ),
    software=dict(),
)


def check_manifest(manifest: Any, name: str) -> None:
    """Check a manifest against the schema.

    Raises:
        SetupError: If an entry is missing, of another type or out of range; it names the entry.
    """
    wrong = _misfit(manifest, _SCHEMA)
    if wrong is None:
        classes, origin, top_k = manifest['teacher']['num_classes'], manifest['origin'], manifest['top_k']
        names = manifest['teacher']['classes']
        if origin is not None and len(origin) != classes:
            wrong = '.origin'
        elif top_k is not None and top_k >= classes:
            wrong = '.top_k'
        elif names is not None and len(names) != classes:
            wrong = '.teacher.classes'
    if wrong is not None:
        entry = f'its entry {wrong[1:]} is missing or cannot be used' if wrong else 'it is not an object'
        raise SetupError(f'Cache: {name} is damaged ({entry}); make the cache again.')


def _misfit(value: Any, kind: Any) -> str | None:
    """The path of the first value that does not fit a kind, or None.

    Kinds: a type, a range of integers, a list with the kind of its entries, a dict of kinds by key, a constant, or a
        tuple
    of alternatives.
    """
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return ''
        for key, inner in kind.items():
            wrong = _misfit(value.get(key, _MISSING), inner)
            if wrong is not None:
                return f'.{key}{wrong}'
        return None
    if isinstance(kind, tuple):
        return None if any(_misfit(value, one) is None for one in kind) else ''
    if isinstance(kind, list):
        fits = isinstance(value, list) and all(_misfit(entry, kind[0]) is None for entry in value)
    elif isinstance(kind, range):
        fits = type(value) is int and value in kind
    elif kind is float:
        fits = type(value) in (int, float)
    elif isinstance(kind, type):
        fits = type(value) is kind
    else:
        fits = type(value) is type(kind) and value == kind
    return None if fits else ''
