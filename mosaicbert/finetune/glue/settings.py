"""Fine-tuning settings of a GLUE task. Only scores with equal settings are comparable."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mosaicbert.config.glue import MAIN, MNLI, OFFICIAL, TASKS, GlueConfig
from mosaicbert.finetune.glue.dataset import DataSummary
from mosaicbert.train.device import choose_precision


def describe_settings(config: GlueConfig, task: str, summaries: Mapping[str, DataSummary]) -> dict[str, Any]:
    """Describe all settings of a task that change its scores, except the model and the seed.

    Args:
        config: Configuration of the scoring.
        task: Name of the task.
        summaries: Data summary of each task that can be scored.

    Returns:
        JSON-compatible settings for score records.
    """
    # Local files are identified by the digest of their content, a Hub dataset by its name and revision.
    has_digest = any(data.digest for data in summaries.values())
    is_official = (config.data, config.revision) == (OFFICIAL, MAIN)

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
        "dropout": config.dropout,
        "tuning_examples": config.tuning_examples,
        "data": None if has_digest or is_official else f"{config.data}@{config.revision}",
    }
