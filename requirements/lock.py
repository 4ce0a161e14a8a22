"""Pin everything that pip installs for one stack, over several Python versions.

    python requirements/lock.py onedl python3.10 python3.11 python3.12 python3.13

writes ``constraints-onedl.txt``. Each interpreter resolves separately, because a package may drop an old
Python. Where the versions differ, the pins have environment markers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent


def resolve(python: str, stack: str) -> tuple[str, dict[str, str]]:
    """The versions that one interpreter's pip would install into an empty environment."""
    files = [
        arg
        for n in ('core', stack, 'tools', 'huggingface', 'export', 'docs', 'dev')
        for arg in ('-r', str(HERE / f'{n}.txt'))
    ]
    # Local wheels of this machine must not affect the pins.
    env = {k: v for k, v in os.environ.items() if k not in ('PIP_FIND_LINKS', 'PIP_CONSTRAINT')}
    command = [python, '-m', 'pip', 'install', '--quiet', '--dry-run', '--ignore-installed']
    report = subprocess.run([*command, '--report', '-', *files], env=env, check=True, stdout=subprocess.PIPE)
    data = json.loads(report.stdout)
    pins = {item['metadata']['name'].lower().replace('_', '-'): item['metadata']['version'] for item in data['install']}
    pins['opencv-python-headless'] = pins['opencv-python']  # see environment.py
    return data['environment']['python_version'], pins


def main(stack: str, *pythons: str) -> None:
    """Resolve with each interpreter and write the constraints file."""
    resolved = dict(resolve(python, stack) for python in pythons)
    versions: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for python, pins in resolved.items():
        for name, version in pins.items():
            versions[name][version].append(python)
    lines = [f'# Written by requirements/lock.py for Python {", ".join(resolved)}.']
    for name, by_version in sorted(versions.items()):
        for version, only in by_version.items():
            marker = f" ; python_version in '{' '.join(only)}'" if len(by_version) > 1 else ''
            lines.append(f'{name}=={version}{marker}')
    (HERE / f'constraints-{stack}.txt').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main(*sys.argv[1:])
