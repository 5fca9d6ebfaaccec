"""Demo corpus: documentation of the standard library and of the packages installed in this Python environment.

The quickstart trains on this corpus and needs no network. It has about forty thousand docstrings, package descriptions
and documentation files, mostly in English.
"""

import ast
import email.parser
import gc
import inspect
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from mosaicbert.processes import map_in_order

_SUFFIXES = frozenset({".py", ".md", ".rst", ".txt"})
_SKIPPED_FOLDERS = frozenset({"site-packages", "test", "tests", "__pycache__"})
_MIN_LETTER_FRACTION = 0.6  # of the characters of a text; tables of numbers have a lower fraction
_ASCII_NON_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())
_FILES_PER_TASK = 200
_DOCUMENTED_NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_STATEMENT_FIELDS = ("body", "handlers", "cases", "orelse", "finalbody")  # fields of a node that have statements


def read_installed_documentation() -> Iterator[tuple[list[str], float]]:
    """Yield batches of texts of this Python environment, each with the fraction of all files read so far.

    The texts are docstrings, package descriptions and documentation files, ordered by path. The same environment always
    yields the same texts in the same order.
    """
    files = sorted(_list_files())
    tasks = [files[first : first + _FILES_PER_TASK] for first in range(0, len(files), _FILES_PER_TASK)]
    for num_tasks, texts in enumerate(map_in_order(_read_files, tasks), start=1):
        yield texts, num_tasks / len(tasks)


def read_package_documentation() -> Iterator[tuple[str, str]]:
    """Yield the docstrings of installed packages, each with the name of the package folder."""
    roots = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    files = sorted((path, root) for path in _list_files() for root in roots if root in path.parents)
    tasks = [files[first : first + _FILES_PER_TASK] for first in range(0, len(files), _FILES_PER_TASK)]
    for labeled_texts in map_in_order(_read_package_files, tasks):
        yield from labeled_texts


def _read_package_files(paths: list[tuple[Path, Path]]) -> list[tuple[str, str]]:
    labeled_texts: list[tuple[str, str]] = []
    for path, root in paths:
        package = path.relative_to(root).parts[0]
        if path.suffix == ".py" and "." not in package:  # excludes top-level modules and *.dist-info folders
            labeled_texts += [(text, package) for text in _read_file(path)]
    return labeled_texts


def _list_files() -> set[Path]:
    package_roots = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    paths: set[Path] = set()
    for root in (Path(sysconfig.get_path("stdlib")), *package_roots):
        for folder, subfolders, names in os.walk(root):
            # The site-packages folder of the standard library belongs to the base interpreter, not to this environment.
            subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
            paths.update(Path(folder, name) for name in names if name == "METADATA" or Path(name).suffix in _SUFFIXES)
    return paths


def _read_files(paths: list[Path]) -> list[str]:
    return [text for path in paths for text in _read_file(path)]


def _read_file(path: Path) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return []  # some packages include test files with an invalid encoding on purpose
    if path.suffix == ".py":
        texts = _docstrings(content)
    elif path.name == "METADATA":
        texts = [str(email.parser.Parser().parsestr(content).get_payload())]
    else:
        texts = [content]
    num_letters = [_count_letters(text) for text in texts]
    return [
        text for text, num in zip(texts, num_letters, strict=True) if num and num >= _MIN_LETTER_FRACTION * len(text)
    ]


def _count_letters(text: str) -> int:
    if text.isascii():
        return len(text.encode().translate(None, _ASCII_NON_LETTERS))  # much faster
    return sum(map(str.isalpha, text))


def _docstrings(source: str) -> list[str]:
    if '"""' not in source and "'''" not in source:
        return []
    # A syntax tree has no reference cycles. The garbage collector would traverse it again and again and free nothing.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _parse_docstrings(source)
    finally:
        if was_enabled:
            gc.enable()


def _parse_docstrings(source: str) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escape sequences in the parsed file
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []  # templates and Python 2 files inside packages
    docstrings = (ast.get_docstring(node, clean=False) for node in _documented_nodes(tree))
    return [inspect.cleandoc(text) for text in docstrings if text]


def _documented_nodes(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the nodes that may have a docstring, in the order of `ast.walk`, without visiting expressions."""
    level: list[ast.AST] = [tree]
    while level:
        for node in level:
            if isinstance(node, _DOCUMENTED_NODES):
                yield node
        level = [child for node in level for field in _STATEMENT_FIELDS for child in getattr(node, field, ())]
