"""The tests: what each process that imports one of them sets first."""

import os
from typing import Any

from yapf.yapflib import yapf_api


def _unformatted(text: str, **style: Any) -> tuple[str, bool]:
    return text, False


# Before torch is imported: as many test processes as cores, each with one thread.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# Where there is a GPU, MMEngine moves models to it, and most tests compare with CPU tensors; `make test-cuda` sets it.
if os.environ.get('FNKD_TEST_CUDA') != '1':
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
# MMEngine formats each config that it dumps with yapf, which takes as long as a tiny training.
yapf_api.FormatCode = _unformatted
