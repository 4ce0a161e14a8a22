"""The page of ``fnkd compare``: a chart and a table in one HTML file without scripts."""

import html
import statistics
from collections.abc import Sequence

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 46rem; margin: 3rem auto; padding: 0 1.5rem }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 } p { color: #5b6875; margin: .4rem 0 1.6rem }
svg { width: 100%; font: 13px system-ui, sans-serif } table { border-collapse: collapse; margin-top: 1.6rem }
th, td { padding: .35rem 1.2rem .35rem 0; text-align: right; font-variant-numeric: tabular-nums }
th { color: #5b6875; font-weight: 500; border-bottom: 1px solid #cdd5dc } td { border-bottom: 1px solid #edf0f3 }
th:first-child, td:first-child { text-align: left }
"""
_LEFT, _RIGHT, _ROW, _TOP = 90, 700, 44, 34


def page(
    title: str, about: str, table: Sequence[Sequence[str]], accuracies: dict[str, list[float]], teacher: float
) -> str:
    """The page.

    Args:
        title: Of the page.
        about: One sentence below it.
        table: Titles, then rows.
        accuracies: Of each method, one per seed, in per cent.
        teacher: The teacher's accuracy in per cent.
    """
    head, *rows = (''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row) for tag, row in _tagged(table))
    body = ''.join(f'<tr>{row}</tr>' for row in rows)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<style>{_STYLE}</style><h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>'
        f'{_chart(accuracies, teacher)}<table><tr>{head}</tr>{body}</table>'
        '<p>Accuracy on the validation photos after the last iteration, mean ± standard deviation over seeds; '
        'differences are paired by seed, ± is their 95 % interval. '
        'In the chart dots are seeds and lines are means.</p></html>'
    )


def _tagged(table: Sequence[Sequence[str]]) -> list[tuple[str, Sequence[str]]]:
    return [('td' if place else 'th', row) for place, row in enumerate(table)]


def _chart(accuracies: dict[str, list[float]], teacher: float) -> str:
    """An SVG with a row for each method and a dot for each seed."""
    values = [teacher, *(value for row in accuracies.values() for value in row)]
    step = next(step for step in (1, 2, 5, 10, 25) if (max(values) - min(values)) / step <= 8)
    low, high = (min(values) // step) * step, (max(values) // step + 1) * step
    bottom = _TOP + _ROW * len(accuracies)

    def x(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_RIGHT - _LEFT), 1)

    parts = []
    for tick in range(int(low), int(high) + 1, step):
        parts.append(f'<path d="M{x(tick)} {_TOP}V{bottom}" stroke="#e6eaee"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 18}" text-anchor="middle" fill="#5b6875">{tick} %</text>')
    parts.append(
        f'<path d="M{x(teacher)} {_TOP}V{bottom}" stroke="#b5542b" stroke-dasharray="5 4" stroke-width="1.5"/>'
    )
    parts.append(f'<text x="{x(teacher)}" y="{_TOP - 10}" text-anchor="middle" fill="#b5542b">teacher</text>')
    for place, (name, row) in enumerate(accuracies.items()):
        y = _TOP + _ROW * (place + 0.5)
        mean = x(statistics.fmean(row))
        parts.append(f'<text x="0" y="{y + 5}" fill="#1c2733">{html.escape(name)}</text>')
        parts.append(f'<path d="M{mean} {y - 13}v26" stroke="#1f5f8b" stroke-width="3"/>')
        parts += [f'<circle cx="{x(v)}" cy="{y}" r="5.5" fill="#1f5f8b" fill-opacity=".45"/>' for v in row]
    return f'<svg viewBox="0 0 {_RIGHT + 30} {bottom + 26}" role="img">{"".join(parts)}</svg>'
