"""The Python files that an exported folder carries, so that `trust_remote_code=True` needs only torch and transformers.

They are this package's own modules, put side by side: the folder's code is the code that trained.
"""

import re
from importlib import resources
from pathlib import Path

_ENTRY = "model.modeling"
_CONFIGURATION = "model.configuration"
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
    waiting, sources = [_ENTRY, _CONFIGURATION], dict[str, str]()
    while waiting:
        module = waiting.pop()
        file_name = module.rsplit(".", 1)[-1]
        if file_name in sources:
            continue
        source = (resources.files("mosaicbert") / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        waiting += _IMPORT.findall(source)
        sources[file_name] = _IMPORT.sub(lambda match: f"from .{match[1].rsplit('.', 1)[-1]} import", source)
    for file_name, source in sources.items():
        (folder / f"{file_name}.py").write_text(source, encoding="utf-8")
