"""Sphinx configuration; `make docs` builds the pages, and warnings are errors."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fnkd_plugin  # noqa: E402

project = 'fnkd_plugin'
author = 'the authors of fnkd_plugin'
release = version = fnkd_plugin.__version__

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
]
source_suffix = {'.md': 'myst-nb'}
exclude_patterns = ['_build', 'jupyter_execute']
myst_enable_extensions = ['dollarmath', 'colon_fence', 'html_image']
myst_heading_anchors = 3
# A notebook's cells run anew in each build; a cell that fails is an error.
nb_execution_mode = 'force'
nb_execution_raise_on_error = True
nb_execution_timeout = 180
autodoc_typehints = 'description'
autodoc_member_order = 'bysource'
# Links to the sources, which are not pages of the site.
suppress_warnings = ['myst.xref_missing']

html_theme = 'furo'
html_title = f'fnkd_plugin {version}'
html_static_path = ['_static']
copybutton_prompt_text = '$ '
