"""The package's set-up; all that is plain data is in pyproject.toml."""

from setuptools import setup

setup()
