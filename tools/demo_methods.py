"""What the demo compares, and the values that it tries."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEARNING_RATES = (0.005, 0.04)


@dataclass(frozen=True)
class Method:
    """A way to train the student, and what is tuned of it besides the learning rate."""

    title: str
    config: str
    weight_name: str = ''
    weights: tuple[float, float] = (0.0, 0.0)
    weight_options: Callable[[float], dict[str, float]] = lambda weight: {}
    needs_teacher: bool = False


METHODS = (
    Method('plain', 'plain_digits.py'),
    Method('LSR', 'lsr_digits.py', 'ε', (0.05, 0.6), lambda eps: {'model.head.loss.eps': eps}),
    Method(
        'KD',
        'kd_digits.py',
        'α',
        (0.1, 0.9),
        lambda alpha: {'model.head.soft_loss.loss_weight': alpha, 'model.head.hard_weight': 1 - alpha},
        needs_teacher=True,
    ),
    Method(
        'FNKD',
        'fnkd_digits.py',
        'λ²',
        (3.0, 100.0),
        lambda weight: {'model.head.soft_loss.loss_weight': weight},
        needs_teacher=True,
    ),
)


def spread(low: float, high: float, count: int) -> list[float]:
    """``count`` numbers at equal ratios from ``low`` to ``high``; of one, their geometric mean."""
    if count == 1:
        return [(low * high) ** 0.5]
    return [round(low * (high / low) ** (i / (count - 1)), 6) for i in range(count)]


def latin_order(count: int) -> list[int]:
    """An order in which low and high weights meet low and high learning rates alike."""
    step = next(s for s in range(max(2, int(count**0.5)), 2 * count + 2) if _coprime(s, count))
    return [(step * i + step // 2) % count for i in range(count)]


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation; one value has none."""
    return statistics.stdev(values) if len(values) > 1 else None


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1
