"""Whether an OpenMMLab stack is installed, and what to say when none is."""

from importlib.util import find_spec

OPENMMLAB_INSTALLED = all(find_spec(name) is not None for name in ('mmengine', 'mmpretrain'))


def require_openmmlab() -> None:
    """Raise an ImportError that names the extras when MMPretrain or MMEngine is missing."""
    if not OPENMMLAB_INSTALLED:
        raise ImportError(
            'fnkd_plugin needs MMPretrain and MMEngine for everything but fnkd_plugin.functional: '
            "install one stack with pip install 'fnkd_plugin[onedl]' (maintained) or "
            "'fnkd_plugin[openmmlab]' (upstream), never both in one environment."
        )
