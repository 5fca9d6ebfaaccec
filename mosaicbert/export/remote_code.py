"""The Python files that an exported folder carries, so that `trust_remote_code=True` needs only torch and transformers.

They are this package's own modules, put side by side: the folder's code is the code that trained.
"""

import re
from importlib import resources
from pathlib import Path

_ENTRY_MODULES = ("model.configuration", "model.modeling")  # what AUTO_MAP names
_IMPORT = re.compile(r"^from mosaicbert\.([\w.]+) import", flags=re.MULTILINE)

# What Hugging Face's Auto classes look for in config.json: class of theirs -> module and class of ours.
AUTO_MAP = {
    "AutoConfig": "configuration.MosaicBertConfig",
    "AutoModel": "modeling.MosaicBertModel",
    "AutoModelForMaskedLM": "modeling.MosaicBertForMaskedLM",
    "AutoModelForSequenceClassification": "modeling.MosaicBertForSequenceClassification",
}


def write_remote_code(folder: Path) -> None:
    """Copies the modules that the model needs into `folder`, with their imports made relative."""
    for entry in _ENTRY_MODULES:
        modules = _imported_modules(entry)
        names = [_flat_name(module) for module in modules]
        assert len(set(names)) == len(names), f"two modules of one name: {names}"
        for module, name in zip(modules, names, strict=True):
            source = _IMPORT.sub(lambda match: f"from .{_flat_name(match[1])} import", _source(module))
            if module in _ENTRY_MODULES:
                # transformers 5.0 copies no other files than those that an entry itself imports.
                dependencies = [
                    _flat_name(dependency) for dependency in _imported_modules(module) if dependency != module
                ]
                source += "\n" + "".join(
                    f"from .{dependency} import __doc__ as _{dependency}_doc\n" for dependency in dependencies
                )
            (folder / f"{name}.py").write_text(source, encoding="utf-8")


def _imported_modules(entry: str) -> list[str]:
    """A module and all that it imports, directly or not."""
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
