"""Python files of an exported folder, for loading with `trust_remote_code=True`.

Loading such a folder requires only torch and transformers. The files are copies of the modules of this package in one
flat folder.
"""

import re
from importlib import resources
from pathlib import Path

_ENTRY_MODULES = ("model.configuration", "model.modeling")  # modules that AUTO_MAP refers to
_IMPORT = re.compile(r"^from mosaicbert\.([\w.]+) import", flags=re.MULTILINE)

# Entry `auto_map` of config.json: module and class of this package by Hugging Face Auto class.
AUTO_MAP = {
    "AutoConfig": "configuration.MosaicBertConfig",
    "AutoModel": "modeling.MosaicBertModel",
    "AutoModelForTextEncoding": "modeling.MosaicBertModel",
    "AutoModelForPreTraining": "modeling.MosaicBertForMaskedLM",
    "AutoModelForMaskedLM": "modeling.MosaicBertForMaskedLM",
    "AutoModelForSequenceClassification": "modeling.MosaicBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling.MosaicBertForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling.MosaicBertForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling.MosaicBertForMultipleChoice",
}


def write_remote_code(folder: Path) -> None:
    """Copy the modules of the model into a folder, with relative imports.

    Args:
        folder: Existing folder to write to.
    """
    for entry in _ENTRY_MODULES:
        modules = _imported_modules(entry)
        names = [_flat_name(module) for module in modules]
        assert len(set(names)) == len(names), f"module file names must be unique, got {names}"
        for module, name in zip(modules, names, strict=True):
            source = _IMPORT.sub(lambda match: f"from .{_flat_name(match[1])} import", _source(module))
            if module in _ENTRY_MODULES:
                # transformers 5.0 copies only the files that an entry module imports directly.
                dependencies = [
                    _flat_name(dependency) for dependency in _imported_modules(module) if dependency != module
                ]
                source += "\n" + "".join(
                    f"from .{dependency} import __doc__ as _{dependency}_doc\n" for dependency in dependencies
                )
            (folder / f"{name}.py").write_text(source, encoding="utf-8")


def _imported_modules(entry: str) -> list[str]:
    """Return a module and the modules of this package that it imports, directly or indirectly."""
    modules, pending = list[str](), [entry]
    while pending:
        module = pending.pop()
        if module not in modules:
            modules.append(module)
            pending += _IMPORT.findall(_source(module))
    return modules


def _source(module: str) -> str:
    return (resources.files("mosaicbert") / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def _flat_name(module: str) -> str:
    return module.rsplit(".", 1)[-1]
