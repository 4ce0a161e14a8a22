"""The output of an analysis: an HTML page, JSON files, and JSON lines with the numbers of each image."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fnkd_plugin.analysis import pictures
from fnkd_plugin.analysis.collect import Columns
from fnkd_plugin.analysis.indicators import INDICATORS, shown
from fnkd_plugin.analysis.subject import Subject
from fnkd_plugin.analysis.thumbnails import thumbnails

_NAMES = {'norm': '‖f‖', 'loss': 'loss', 'margin': 'margin', 'entropy': 'entropy'}
_SUMMARY = ('made', 'images', 'classes', 'accuracy', 'norms', 'error_detection', 'audits')


def write_report(
    folder: Path, subject: Subject, columns: Columns, numbers: dict[str, Any], made: dict[str, Any]
) -> dict[str, Path]:
    """Write ``report.html``, ``analysis.json``, ``audit.json`` and ``images.jsonl`` into ``folder``.

    ``audit.json`` is a small part of ``analysis.json``: how well ‖f‖ indicates noise.

    Args:
        folder: The output folder; created if needed.
        subject: The subject of the analysis.
        columns: The numbers of each image, see :func:`~fnkd_plugin.analysis.study.study`.
        numbers: The results, likewise.
        made: Metadata of the run, for the JSON files and the page's footer; with the page's ``title`` and ``split``.

    Returns:
        The files by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = dict(made=made, class_names=subject.classes, **numbers)
    curves = {name: {k: v for k, v in curve.items() if k != 'binned'} for name, curve in numbers['curves'].items()}
    audit = dict({name: whole[name] for name in _SUMMARY}, correlations=curves)
    # Line by line, since one Python object for all images would take more memory than the columns.
    lines = (json.dumps(line_of(subject, columns, i)) + '\n' for i in range(len(subject.labels)))
    texts = {
        'report.html': [page(subject, columns, numbers, made)],
        'analysis.json': [json.dumps(whole, indent=1, ensure_ascii=False)],
        'audit.json': [json.dumps(audit, indent=1, ensure_ascii=False), '\n'],
        'images.jsonl': lines,
    }
    for name, text in texts.items():
        # File and class names may hold bytes that are not UTF-8.
        with open(folder / name, 'w', encoding='utf-8', errors='backslashreplace') as file:
            file.writelines(text)
    return {name: folder / name for name in texts}


def line_of(subject: Subject, columns: Columns, index: int) -> dict[str, Any]:
    """The numbers of one image; its name is that of its file, or its index for images in memory."""
    name = str(subject.dataset.get_data_info(index).get('img_path', f'image {index}')).rpartition('!')[2]
    labels = dict(label=int(subject.labels[index]), clean_label=int(subject.clean[index]))
    return dict(index=index, image=name, **labels, **{key: float(f'{c[index]:.6g}') for key, c in columns.items()})


def page(subject: Subject, columns: Columns, numbers: dict[str, Any], made: dict[str, Any]) -> str:
    """The page as a string, with embedded images."""
    environment = Environment(
        loader=PackageLoader('fnkd_plugin.analysis', '.'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['class_name'] = lambda index: subject.classes[int(index)].replace('_', ' ')
    ranked = [i for ranking in numbers['ranking'].values() for i in ranking]
    of_classes = [i for row in numbers['class_rows'] for i in row['small'] + row['large']]
    images = thumbnails(subject, [*ranked, *of_classes, *(card['image'] for card in numbers['compensations'])])
    return environment.get_template('report.html').render(
        made=made,
        headlines=headlines(numbers),
        pixels=str(subject.pixels),
        teacher=None if subject.teacher is None else subject.teacher.name,
        diagrams=diagrams(subject, columns, numbers),
        captions={index: line_of(subject, columns, index) for index in images},
        images_shown=images,
        indicators=INDICATORS,
        indicator_names=_NAMES,
        **numbers,
    )


def diagrams(subject: Subject, columns: Columns, numbers: dict[str, Any]) -> pictures.Diagrams:
    """All diagrams by name, as data URIs; those of a teacher, groups or audits only if available."""
    found: pictures.Diagrams = {}
    for prefix in ('', 'teacher_'):
        if f'{prefix}norm' in columns:
            right = columns[f'{prefix}prediction'] == subject.clean
            pictures.add_norms(found, f'{prefix}norm', columns[f'{prefix}norm'], right)
    labels_and_colors = {
        'loss': ('cross-entropy with the label, nats', pictures.WRONG),
        'entropy': ('entropy of the prediction, nats', pictures.KD),
        'disagreement': ('KL(teacher, model), nats', pictures.ALSR),
    }
    for name, curve in numbers['curves'].items():
        ylabel, color = labels_and_colors[name]
        note = f'Spearman {curve["spearman"]:+.2f}, Pearson {curve["pearson"]:+.2f}'
        pictures.add_curves(found, f'curve_{name}', ylabel, {note: (curve['binned'], color)})
    soft, policy = numbers['soft_labels']['curves'], numbers['policy']
    temperature, tau = policy['temperature'], policy['tau']
    for name, ylabel in (('confidence', 'largest probability'), ('entropy', 'entropy, nats')):
        curves = {
            f'KD: σ(v/{temperature:g})': (soft[f'kd_{name}']['binned'], pictures.KD),
            f'FNKD: q_fn, τ = {tau:.3g}': (soft[f'fnkd_{name}']['binned'], pictures.FNKD),
        }
        pictures.add_curves(found, f'soft_{name}', ylabel, curves)
    line: dict[str, Any] = dict(x=temperature, label=f'KD: T = {temperature:g}', color=pictures.KD)
    labels = ('effective temperature ‖f‖/τ of FNKD', 'images')
    pictures.add_histogram(found, 'temperature', labels, columns['source_norm'] / tau, pictures.FNKD, **line)
    near = numbers['confusions'].get('near')
    if near and near['model']['by_class']:
        pictures.add_near_shares(found, 'near', near)
        by_class = near.get('teacher', near['model'])['by_class']
        chance = 100 * sum(entry['chance'] for entry in by_class) / len(by_class)
        line = dict(x=chance, label=f'chance, mean {chance:.1f} %', color=pictures.GREY)
        labels = ('share of a class’s off-target mass inside A(x), %', 'classes')
        shares = [100 * entry['share'] for entry in by_class]
        pictures.add_histogram(found, 'near_classes', labels, shares, pictures.ALSR, **line)
    if numbers['audits']:
        pictures.add_aurocs(found, 'aurocs', numbers['audits'], _NAMES)
    return found


def headlines(numbers: dict[str, Any]) -> list[str]:
    """Sentences on how well ‖f‖ indicates noise, computed from the numbers."""
    found = []
    norms, errors = numbers['norms']['model'], numbers['error_detection']
    if errors is not None:
        found.append(
            f'Right predictions have a mean ‖f‖ of {norms["right"]["mean"]:.3g}, wrong ones of '
            f'{norms["wrong"]["mean"]:.3g}; a small ‖f‖ finds wrong predictions with an AUROC of '
            f'{shown(errors["norm"])}, a large entropy with {shown(errors["entropy"])}.'
        )
    return found + [f'Labels {name}: {audited["verdict"]}' for name, audited in numbers['audits'].items()]
