"""Packages of the wheel; all other metadata are in pyproject.toml.

The folder `recipes/` at the top of the repository becomes `mosaicbert/recipes/` in the wheel.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mosaicbert", "mosaicbert.*"]), "mosaicbert.recipes"],
    package_dir={"mosaicbert.recipes": "recipes"},
    package_data={"mosaicbert": ["py.typed"], "mosaicbert.recipes": ["**/*.yaml"]},
)
