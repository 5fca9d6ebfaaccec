"""Registration of the model classes with Hugging Face's Auto classes.

The classes are registered on the import of transformers' Auto modules, whether before or after that of this package.
Therefore `import mosaicbert` and `mosaicbert --help` do not import torch or transformers.
"""

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from mosaicbert.model.remote_code import AUTO_MAP


def _register_configuration(module: Any) -> None:
    from mosaicbert.model.configuration import PUBLISHED_KEY, MosaicBertConfig

    module.AutoConfig.register(MosaicBertConfig.model_type, MosaicBertConfig)
    load = module.AutoConfig.from_pretrained

    @functools.wraps(load)
    def from_pretrained(pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        # The model_type of a published MosaicBERT is `bert`, so Hugging Face would build a BERT with random weights.
        # Its own code cannot be imported with the supported versions of torch.
        options = {key: value for key, value in kwargs.items() if key not in ("trust_remote_code", "code_revision")}
        if not kwargs.get("trust_remote_code"):
            config = load(pretrained_model_name_or_path, **kwargs)
            if not hasattr(config[0] if isinstance(config, tuple) else config, PUBLISHED_KEY):
                return config
        elif not MosaicBertConfig.is_published(pretrained_model_name_or_path, **options):
            return load(pretrained_model_name_or_path, **kwargs)
        return MosaicBertConfig.from_pretrained(pretrained_model_name_or_path, **options)

    module.AutoConfig.from_pretrained = from_pretrained


def import_models() -> Any:
    """Import and return the module of the model classes.

    The import runs on the CPU, since torch creates tensors while it imports its compiler. This fails within the
    caller's `with torch.device("meta")`.
    """
    import torch

    with torch.device("cpu"):
        return importlib.import_module("mosaicbert.model.modeling")


def _register_models(module: Any) -> None:
    modeling = import_models()
    config = modeling.MosaicBertConfig
    for auto_class, path in AUTO_MAP.items():
        if auto_class != "AutoConfig":
            getattr(module, auto_class).register(config, getattr(modeling, path.rpartition(".")[2]))


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
