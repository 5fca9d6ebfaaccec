"""A small corpus of real English for tests: docstrings of the standard library."""

import ast
import json
import sysconfig
from pathlib import Path

_MODULES = (
    "argparse.py",
    "datetime.py",
    "decimal.py",
    "difflib.py",
    "optparse.py",
    "random.py",
    "statistics.py",
    "typing.py",
)


def texts() -> list[str]:
    found = []
    for name in _MODULES:
        tree = ast.parse(Path(sysconfig.get_path("stdlib"), name).read_text(encoding="utf-8"))
        nodes = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
        found += [text for node in nodes if (text := ast.get_docstring(node)) and len(text) > 40]
    return found


def write_jsonl(path: Path, documents: list[str] | None = None, column: str = "text") -> Path:
    lines = (json.dumps({column: text}) for text in (texts() if documents is None else documents))
    path.write_text("\n".join(lines) + "\n")
    return path
