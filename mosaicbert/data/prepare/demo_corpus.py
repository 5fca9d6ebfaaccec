"""Text that every Python environment holds: the documentation of its standard library and installed packages.

The quickstart trains on it, so it needs no network: some forty thousand docstrings, package descriptions and
documentation files, mostly plain English.
"""

import ast
import email.parser
import inspect
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from mosaicbert.processes import map_in_order

_SUFFIXES = frozenset({".py", ".md", ".rst", ".txt"})
_SKIPPED_FOLDERS = frozenset({"site-packages", "test", "tests", "__pycache__"})
_MIN_LETTER_FRACTION = 0.6  # of a text's characters: below it stand tables of numbers
_FILES_PER_TASK = 200


def read_installed_documentation() -> Iterator[tuple[list[str], float]]:
    """Yields the docstrings, package descriptions and documentation files of this Python environment, some at a time.

    With them comes the fraction of all files that has been read. The order is that of the sorted paths, so one
    environment always yields the same texts in the same order.
    """
    files = sorted(_list_files())
    tasks = [files[first : first + _FILES_PER_TASK] for first in range(0, len(files), _FILES_PER_TASK)]
    for number, texts in enumerate(map_in_order(_read_files, tasks), start=1):
        yield texts, number / len(tasks)


def read_package_documentation() -> Iterator[tuple[str, str]]:
    """Yields the texts of installed packages, each with the name of the folder that the package is imported by."""
    roots = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    files = sorted((path, root) for path in _list_files() for root in roots if root in path.parents)
    tasks = [files[first : first + _FILES_PER_TASK] for first in range(0, len(files), _FILES_PER_TASK)]
    for found in map_in_order(_read_package_files, tasks):
        yield from found


def _read_package_files(paths: list[tuple[Path, Path]]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for path, root in paths:
        package = path.relative_to(root).parts[0]
        if path.suffix == ".py" and "." not in package:  # neither a module by itself nor a distribution's notes
            found += [(text, package) for text in _read_file(path)]
    return found


def _list_files() -> set[Path]:
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    found: set[Path] = set()
    for root in (Path(sysconfig.get_path("stdlib")), *installed):
        for folder, subfolders, names in os.walk(root):
            # Below the standard library lie the packages of the base interpreter, which are not this environment's.
            subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
            found.update(Path(folder, name) for name in names if name == "METADATA" or Path(name).suffix in _SUFFIXES)
    return found


def _read_files(paths: list[Path]) -> list[str]:
    return [text for path in paths for text in _read_file(path)]


def _read_file(path: Path) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return []  # not text of ours to judge: packages ship test files in broken encodings on purpose
    if path.suffix == ".py":
        texts = _docstrings(content)
    elif path.name == "METADATA":
        texts = [str(email.parser.Parser().parsestr(content).get_payload())]
    else:
        texts = [content]
    letters = [sum(map(str.isalpha, text)) for text in texts]
    return [text for text, num in zip(texts, letters, strict=True) if num and num >= _MIN_LETTER_FRACTION * len(text)]


def _docstrings(source: str) -> list[str]:
    if '"""' not in source and "'''" not in source:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parsed files' own invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []  # templates and Python 2 files that packages carry along
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented))
    return [inspect.cleandoc(text) for text in found if text]
