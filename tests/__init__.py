"""The tests: what each process that imports one of them sets first."""

import os
from typing import Any

from yapf.yapflib import yapf_api


def _unformatted(text: str, **style: Any) -> tuple[str, bool]:
    return text, False


# Before torch is imported: as many test processes as cores, each with one thread.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# On a GPU, where MMEngine would move models, most tests could not compare with CPU tensors; see `make test-cuda`.
if os.environ.get('FNKD_TEST_CUDA') != '1':
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
# MMEngine formats each config that it dumps with yapf, which takes as long as a tiny training.
yapf_api.FormatCode = _unformatted
