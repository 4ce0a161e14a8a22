"""A hook that kills its process at a point given by environment variables, for ``custom_imports``."""

import os
import signal
from typing import Any

from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module(force=True)
class Kill(Hook):
    """SIGKILL after ``KILL_AFTER`` iterations (of ``KILL_RANK``), or half-way through writing ``KILL_WRITING``."""

    def before_run(self, runner: Any) -> None:
        if 'KILL_WRITING' in os.environ:
            put = LocalBackend.put

            def put_half(self: Any, content: bytes, path: str) -> None:
                if os.path.basename(path).lstrip('.') == os.environ['KILL_WRITING']:  # hidden until it is whole
                    put(self, bytes(content)[: len(bytes(content)) // 2], path)
                    _kill()
                put(self, content, path)

            LocalBackend.put = put_half

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        due = runner.iter + 1 == int(os.environ.get('KILL_AFTER', 0))
        if due and runner.rank == int(os.environ.get('KILL_RANK', 0)):
            _kill()
