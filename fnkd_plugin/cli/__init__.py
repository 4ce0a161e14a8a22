"""The commands of ``fnkd``: functions that the console and ``tools/`` call."""

import fnkd_plugin

fnkd_plugin.register()
