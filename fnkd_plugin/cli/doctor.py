"""``fnkd doctor``: what is installed, what is missing, and the command that fixes it."""

import importlib.metadata
import importlib.util
import platform
from pathlib import Path
from typing import Any

import torch

_STACKS = {'onedl': 'onedl-mmpretrain', 'openmmlab': 'mmpretrain'}
_EXTRAS = {
    'tools': ('matplotlib', 'jinja2', 'sklearn', 'torchmetrics'),
    'huggingface': ('transformers',),
    'export': ('onnx', 'onnxruntime', 'onnxscript'),
}
_PACKAGES = (
    'torch', 'torchvision', 'timm', 'triton', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain',
    'mmengine', 'mmcv', 'mmcv-lite', 'mmpretrain',
)  # fmt: skip
_RECORDED = ('torch', 'timm', 'mmengine', 'mmpretrain', 'onedl-mmengine', 'onedl-mmpretrain', 'torchmetrics')


def surroundings() -> dict[str, Any]:
    """Versions and machine, as results files record them."""
    installed = {d.metadata['Name'].lower(): d.version for d in importlib.metadata.distributions()}
    return dict(
        versions=dict(python=platform.python_version(), **{n: installed[n] for n in _RECORDED if n in installed}),
        machine=dict(system=platform.system(), processor=_processor(), **_accelerator()),
    )


def _accelerator() -> dict[str, str]:
    return dict(accelerator=torch.cuda.get_device_name()) if torch.cuda.is_available() else {}


def _processor() -> str:
    # platform.processor() is empty on most Linux systems.
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return f'{len(names)} x {names[0]}' if names else platform.processor()


def report() -> tuple[list[tuple[str, str]], list[str]]:
    """Rows of (what, found), and one sentence for each thing that is missing."""
    from fnkd_plugin import __version__

    versions = {name: _version(name) for name in _PACKAGES}
    rows = [('fnkd_plugin', __version__), ('Python', platform.python_version())]
    rows += [(name, version) for name, version in versions.items() if version]
    rows.append(('GPU', _gpu()))
    rows.append(('MMCV compiled ops', 'yes' if importlib.util.find_spec('mmcv._ext') else 'no (not needed)'))
    return rows, _missing(versions)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ''


def _gpu() -> str:
    if not torch.cuda.is_available():
        return 'none that PyTorch sees; trainings run on the CPU'
    return ', '.join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _missing(versions: dict[str, str]) -> list[str]:
    found = []
    stacks = [name for name, package in _STACKS.items() if versions[package]]
    if not stacks:
        found.append("No OpenMMLab stack: pip install 'fnkd_plugin[onedl]'.")
    if len(stacks) > 1:
        found.append('Two OpenMMLab stacks in one environment: pip uninstall mmengine mmcv mmcv-lite mmpretrain.')
    for extra, modules in _EXTRAS.items():
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        if absent:
            found.append(f"{', '.join(absent)} missing: pip install 'fnkd_plugin[{extra}]'.")
    return found
