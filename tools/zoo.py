#!/usr/bin/env python
"""Write configs/*/metafile.yml from the results files in benchmarks/, and the table of docs/zoo.md from the metafiles.

Only tested trainings are included. Parameters and FLOPs (multiply-adds, as OpenMMLab counts them) are measured here.
Only the address of published weights is added to a metafile by hand, and is kept.
"""

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import yaml
from experiments.readme import document_of, markdown, replace_between
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmpretrain import get_model

# Use the package of this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fnkd_plugin  # noqa: F401
from fnkd_plugin.mm.config import dicts_in, plain_config

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    'cifar100': ['cifar100_60e.json'],
    'cub2010': ['cub2010.json', 'cub2010_small.json'],
    'demo': ['digits.json'],
}
"""The results files in benchmarks/ for each folder of configs."""
TESTED = re.compile(r'teacher|.*_seed\d+')
PAPER = {
    'Title': 'Feature Normalized Knowledge Distillation for Image Classification',
    'URL': 'https://doi.org/10.1007/978-3-030-58595-2_40',
}
TOP1, SPREAD = 'Top 1 Accuracy', 'Top 1 Accuracy Standard Deviation'


def tested_runs(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs of a results file that were scored on the test set, by :func:`command_of`.

    If several rows of a table share a command with different options, the first row is used.
    """
    runs = defaultdict(list)
    for name, run in results['runs'].items():
        if TESTED.fullmatch(name):
            of_config = runs[command_of(run)]
            if not of_config or of_config[0]['options'] == run['options']:
                of_config.append(run)
    return dict(runs)


def command_of(run: dict[str, Any]) -> str:
    """The arguments of ``tools/train.py``: the config and the flags that change its method."""
    return ' '.join([run['config'], *run.get('flags', ())])


def model_name(command: str) -> str:
    """The name in OpenMMLab's style: ``fnkd_lite0_cub2010.py`` becomes ``fnkd-lite0_cub2010``.

    The method of ``fnkd_lite0_cub2010.py --distill kd`` is ``kd``. The teacher is left out.
    """
    config, *flags = command.split()
    *method, data = re.sub('_from_[^_]+', '', Path(config).stem).split('_')
    mixed_in = flags[1].split('_') if flags else method[:1]
    return f'{"-".join([*mixed_in, *method[1:]])}_{data}'


def input_shape(cfg: Config) -> tuple[int, int, int]:
    """The model's input: the channels of its data preprocessor and the last crop size of its pipelines."""
    sizes = [
        size
        for loader in (cfg.train_dataloader, cfg.val_dataloader)
        for node in dicts_in(loader.dataset.pipeline)
        if (size := node.get('crop_size', node.get('scale') if 'RandomResizedCrop' in node['type'] else None))
    ]
    side = sizes[-1]
    return (len(cfg.data_preprocessor.mean), *((side, side) if isinstance(side, int) else side))


def complexity(config: Path, options: dict[str, Any]) -> dict[str, int]:
    """The student's parameters, and its multiply-adds for one image of the size that the options set."""
    cfg = plain_config(Config.fromfile(config))
    cfg.merge_from_dict({key: value for key, value in options.items() if '_dataloader.' in key})
    model = get_model(cfg)
    flops = FlopAnalyzer(model, torch.zeros(1, *input_shape(cfg)))
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return {'Parameters': sum(p.numel() for p in model.parameters()), 'FLOPs': int(flops.total())}


def model_entry(root: Path, folder: Path, runs: list[dict[str, Any]], collection: str, source: str) -> dict[str, Any]:
    """The entry of one model: its config, flags, options and the mean accuracy over its seeds."""
    command = command_of(runs[0])
    name, *flags = command.split()
    config = folder / name
    accuracies = [run['accuracy'] for run in runs]
    metrics = {TOP1: round(statistics.mean(accuracies), 2)}
    if len(runs) > 1:
        metrics[SPREAD] = round(statistics.stdev(accuracies), 2)
    return {
        'Name': model_name(command),
        'Metadata': {
            **complexity(config, runs[0]['options']),
            **({'Flags': ' '.join(flags)} if flags else {}),
            'Options': runs[0]['options'],
            'Seeds': sorted(run['seed'] for run in runs),
            'Results File': source,
        },
        'In Collection': collection,
        'Results': [{'Dataset': collection, 'Metrics': metrics, 'Task': 'Image Classification'}],
        'Config': config.relative_to(root).as_posix(),
    }


def write_metafiles(root: Path) -> None:
    """Write ``metafile.yml`` in each folder of configs that has results."""
    for name, files in SOURCES.items():
        folder = root / 'configs' / name
        sources = [path for file in files if (path := root / 'benchmarks' / file).exists()]
        if not sources:
            continue
        collection = (folder / 'README.md').read_text().splitlines()[0].lstrip('# ')
        # Tables share teachers: the first file with a config is used.
        found = {
            config: (runs, source)
            for source in reversed(sources)
            for config, runs in tested_runs(json.loads(source.read_text())).items()
        }
        entries = [
            model_entry(root, folder, runs, collection, source.relative_to(root).as_posix())
            for _, (runs, source) in sorted(found.items(), key=lambda item: model_name(item[0]))
        ]
        write_metafile(folder / 'metafile.yml', collection, entries)


def write_metafile(path: Path, collection: str, entries: list[dict[str, Any]]) -> None:
    """Write the file and keep the ``Weights`` of the previous one.

    OpenMMLab's check of the format reads ``README`` relative to the file, and ``Config`` relative to the root.
    """
    old = yaml.safe_load(path.read_text())['Models'] if path.exists() else []
    weights = {model['Name']: model['Weights'] for model in old if 'Weights' in model}
    for entry in entries:
        if entry['Name'] in weights:
            entry['Weights'] = weights[entry['Name']]
    about = {'Name': collection, 'Metadata': {'Training Data': collection}, 'Paper': PAPER, 'README': 'README.md'}
    text = yaml.safe_dump({'Collections': [about], 'Models': entries}, sort_keys=False, allow_unicode=True, width=120)
    path.write_text(f'# Written by tools/zoo.py; only Weights are added by hand.\n{text}')


def table(root: Path) -> str:
    """The models of all metafiles as a Markdown table."""
    rows = []
    for path in sorted((root / 'configs').glob('*/metafile.yml')):
        for model in yaml.safe_load(path.read_text())['Models']:
            (result,), about = model['Results'], model['Metadata']
            metrics = result['Metrics']
            accuracy = f'{metrics[TOP1]:.2f}' + (f' ± {metrics[SPREAD]:.2f}' if SPREAD in metrics else '')
            title, size = f'[{model["Name"]}](../{model["Config"]})', f'{about["Parameters"]:,}'
            cells = [title, result['Dataset'], accuracy, len(about['Seeds']), size, f'{about["FLOPs"]:,}']
            rows.append([*cells, _weights(model)])
    return markdown(['model', 'data set', 'top-1, %', 'seeds', 'parameters', 'FLOPs', 'weights'], rows, 'l' * 7)


def _weights(model: dict[str, Any]) -> str:
    weights = model.get('Weights')
    if weights is None:
        return 'train it'
    return f'[file]({weights})' if '://' in weights else f'[in the package](../{weights})'


def main(root: Path = ROOT) -> None:
    """Write the metafiles, then the table."""
    write_metafiles(root)
    replace_between(document_of(root, 'zoo'), 'zoo', table(root))


if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        main()
    except ValueError as error:
        sys.exit(f'error: {error}')
