"""What holds on a GPU alone; ``make test-cuda`` runs it."""

import os

DEVICE = 'cuda'
# Deterministic matrix products want it before the first one.
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
