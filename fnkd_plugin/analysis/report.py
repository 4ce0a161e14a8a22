"""The output of an analysis: an HTML page, JSON files, and JSON lines with the numbers of each image."""

import json
from pathlib import Path
from typing import Any

from fnkd_plugin.analysis import pictures
from fnkd_plugin.analysis.indicators import INDICATORS
from fnkd_plugin.analysis.study import GIVEN, Study
from fnkd_plugin.analysis.subject import Subject, printable

_NAMES = {'norm': '‖f‖', 'loss': 'loss', 'margin': 'margin', 'entropy': 'entropy'}


def write_report(folder: Path, subject: Subject, study: Study, made: dict[str, Any]) -> dict[str, Path]:
    """Write ``report.html``, ``analysis.json``, ``audit.json`` and ``images.jsonl`` into ``folder``.

    ``audit.json`` is a small part of ``analysis.json``: how well ‖f‖ indicates noise.

    Args:
        folder: The output folder; created if needed.
        subject: The subject of the analysis.
        study: The results.
        made: Metadata of the run, for the JSON files and the page's footer; with the page's ``title`` and ``split``.

    Returns:
        The files by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ('report.html', 'analysis.json', 'audit.json', 'images.jsonl')}
    files['report.html'].write_text(page(subject, study, made), encoding='utf-8')
    named = dict(made=made, class_names=subject.classes, **study.numbers)
    files['analysis.json'].write_text(json.dumps(named, indent=1, ensure_ascii=False), encoding='utf-8')
    kept = {
        name: named[name] for name in ('made', 'images', 'classes', 'accuracy', 'norms', 'error_detection', 'audits')
    }
    kept['correlations'] = {
        name: {kind: curve[kind] for kind in ('spearman', 'pearson')} for name, curve in named['curves'].items()
    }
    files['audit.json'].write_text(json.dumps(kept, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    _write_images(files['images.jsonl'], subject, study)
    return files


def _write_images(path: Path, subject: Subject, study: Study) -> None:
    # Line by line, since one Python object for all images would take more memory than the columns.
    with open(path, 'w', encoding='utf-8') as file:
        for i, label in enumerate(subject.labels.tolist()):
            line = dict(index=i, image=name_of(subject, i), label=label, clean_label=int(subject.clean[i]))
            line |= {name: float(f'{column[i]:.6g}') for name, column in study.columns.items()}
            file.write(json.dumps(line) + '\n')


def name_of(subject: Subject, index: int) -> str:
    """The image's file name, or its index for images in memory."""
    return printable(subject.dataset.get_data_info(index).get('img_path', f'image {index}')).rpartition('!')[2]


def page(subject: Subject, study: Study, made: dict[str, Any]) -> str:
    """The page as a string, with embedded images."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("analysis: the page needs Jinja2; pip install 'fnkd_plugin[tools]'.") from error
    environment = Environment(
        loader=PackageLoader('fnkd_plugin.analysis', '.'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['class_name'] = lambda index: subject.classes[index].replace('_', ' ')
    return environment.get_template('report.html').render(
        made=made,
        pixels=str(subject.pixels),
        teacher=None if subject.teacher is None else subject.teacher.name,
        diagrams=diagrams(subject, study),
        captions={index: _caption(subject, study, index) for index in study.shown},
        shown=study.shown,
        indicators=INDICATORS,
        indicator_names=_NAMES,
        **study.numbers,
    )


def _caption(subject: Subject, study: Study, index: int) -> dict[str, Any]:
    """The data of an image's caption."""
    columns = study.columns
    label, clean = int(subject.labels[index]), int(subject.clean[index])
    return dict(
        index=index,
        name=name_of(subject, index),
        label=label,
        clean=clean,
        prediction=int(columns['prediction'][index]),
        norm=float(columns['norm'][index]),
        loss=float(columns[f'loss/{GIVEN}'][index]),
        margin=float(columns[f'margin/{GIVEN}'][index]),
        entropy=float(columns['entropy'][index]),
    )


def diagrams(subject: Subject, study: Study) -> dict[str, str]:
    """All diagrams by name, as data URIs; those of a teacher, groups or audits only if available."""
    columns, numbers = study.columns, study.numbers
    found = {'norm': pictures.norm_histogram(columns['norm'], columns['prediction'] == subject.clean)}
    if 'teacher_norm' in columns:
        right = columns['teacher_prediction'] == subject.clean
        found['teacher_norm'] = pictures.norm_histogram(columns['teacher_norm'], right)
    labels_and_colors = {
        'loss': ('cross-entropy with the label, nats', pictures.WRONG),
        'entropy': ('entropy of the prediction, nats', pictures.KD),
        'disagreement': ('KL(teacher, model), nats', pictures.ALSR),
    }
    for name, curve in numbers['curves'].items():
        note = f'Spearman {curve["spearman"]:+.2f}, Pearson {curve["pearson"]:+.2f}'
        found[f'curve_{name}'] = pictures.curve(curve['binned'], *labels_and_colors[name], note)
    policy, soft = numbers['policy'], numbers['soft_labels']
    labels = (f'KD: σ(v/{policy["temperature"]:g})', f'FNKD: q_fn, τ = {policy["tau"]:.3g}')
    for name, ylabel in (('confidence', 'largest probability'), ('entropy', 'entropy, nats')):
        kd, fnkd = (soft[f'{method}_{name}']['binned'] for method in ('kd', 'fnkd'))
        found[f'soft_{name}'] = pictures.two_curves(kd, fnkd, ylabel, labels)
    found['temperature'] = pictures.temperatures(columns['source_norm'] / policy['tau'], policy['temperature'])
    near = numbers['confusions'].get('near')
    if near and next(iter(near.values()))['by_class']:
        found['near'] = pictures.near_shares(near)
        source = near.get('teacher', near['model'])
        found['near_classes'] = pictures.class_shares(source['by_class'])
    if numbers['audits']:
        found['aurocs'] = pictures.aurocs(numbers['audits'], _NAMES.__getitem__)
    return found


def headlines(numbers: dict[str, Any]) -> list[str]:
    """Sentences on how well ‖f‖ indicates noise, computed from the numbers."""
    found = []
    norms, errors = numbers['norms']['model'], numbers['error_detection']
    if errors is not None:
        areas = {name: f'{e["auroc"]:.3f} ± {1.96 * e["standard_error"]:.3f}' for name, e in errors.items()}
        right, wrong = norms['right']['mean'], norms['wrong']['mean']
        found.append(
            f'Right predictions have a mean ‖f‖ of {right:.3g}, wrong ones of {wrong:.3g}; a small ‖f‖ finds wrong '
            f'predictions with an AUROC of {areas["norm"]}, a large entropy with {areas["entropy"]}.'
        )
    return found + [f'Labels {name}: {audited["verdict"]}' for name, audited in numbers['audits'].items()]
