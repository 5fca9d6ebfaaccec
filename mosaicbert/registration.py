"""Registration of the model classes with Hugging Face's Auto classes.

The classes are registered on the import of transformers' Auto modules, whether before or after that of this package.
Therefore `import mosaicbert` and `mosaicbert --help` do not import torch or transformers.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def _register_configuration(module: Any) -> None:
    from mosaicbert.model.configuration import MosaicBertConfig

    module.AutoConfig.register(MosaicBertConfig.model_type, MosaicBertConfig)


def _register_models(module: Any) -> None:
    from mosaicbert.model import modeling

    config = modeling.MosaicBertConfig
    module.AutoModel.register(config, modeling.MosaicBertModel)
    module.AutoModelForMaskedLM.register(config, modeling.MosaicBertForMaskedLM)
    module.AutoModelForSequenceClassification.register(config, modeling.MosaicBertForSequenceClassification)


_REGISTRATIONS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_configuration,
    "transformers.models.auto.modeling_auto": _register_models,
}


class _RegisteringFinder(importlib.abc.MetaPathFinder):
    """Import hook that registers the model classes after the execution of an Auto module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        register = _REGISTRATIONS.get(fullname)
        if register is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register(module)

        spec.loader.exec_module = execute_and_register  # pyright: ignore[reportAttributeAccessIssue]
        return spec


def register_auto_classes() -> None:
    """Register the model classes with imported Auto modules, and with the others on their import."""
    pending = [name for name in _REGISTRATIONS if name not in sys.modules]
    for name, register in _REGISTRATIONS.items():
        if name not in pending:
            register(sys.modules[name])
    if pending:
        sys.meta_path.insert(0, _RegisteringFinder())
