"""Settings of a task's fine-tuning and their fingerprint: only scores with the same settings are comparable."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mosaicbert.config.glue import MAIN, MNLI, OFFICIAL, TASKS, GlueConfig
from mosaicbert.finetune.glue.dataset import DataSummary
from mosaicbert.train.device import choose_precision


def describe_settings(config: GlueConfig, task: str, summaries: Mapping[str, DataSummary]) -> dict[str, Any]:
    """Describe everything about a task's fine-tuning that changes its scores, except the model and the seed.

    Args:
        config: Configuration of the scoring.
        task: Name of the task.
        summaries: Data summary of each task that can be scored.
    """
    # Files are identified by their content, wherever they are; a dataset of the Hub by its name.
    is_known_data = any(data.digest for data in summaries.values()) or (config.data, config.revision) == (
        OFFICIAL,
        MAIN,
    )

    def protocol(name: str) -> dict[str, Any]:
        fields = asdict(config.protocol_of(name))
        del fields["num_seeds"]
        dtype, _ = choose_precision("fp32" if TASKS[name].needs_fp32 else config.precision, "glue.precision")
        data = summaries.get(name, DataSummary())
        digest = {} if data.digest is None else {"digest": data.digest}
        return fields | {"precision": str(dtype), "sizes": data.sizes or TASKS[name].num_examples} | digest

    return {
        "protocol": protocol(task),
        "mnli": protocol(MNLI) if config.is_initialized_from_mnli(task) else None,
        "shuffle": config.shuffle,
        "max_seq_len": config.max_seq_len,
        "data": None if is_known_data else f"{config.data}@{config.revision}",
    }


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hash settings to twelve hexadecimal digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
