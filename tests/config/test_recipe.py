import math
from dataclasses import replace

import pytest

from mosaicbert.config import (
    CheckpointConfig,
    ConfigError,
    DataConfig,
    Duration,
    EvalConfig,
    FaultConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)

TEXT = {"text": SourceConfig(path="text.jsonl")}
RECIPE = Recipe(
    run_name="test",
    data=DataConfig(sources=TEXT),
    tokenizer=TokenizerConfig(source="train"),
    train=TrainConfig(duration="10_000 samples"),
)


def _weighted(**weights):
    return {name: SourceConfig(path=name, weight=weight) for name, weight in weights.items()}


_GROWING = {"initial_batch_samples": 256, "batch_warmup_tokens": 10**9}


def _duration_error(key, text):
    return (
        f"`{key}` must be a positive whole number of steps, samples or tokens, or a positive time in s, min or h, "
        f"got {text!r}. Examples: 70_000 steps, 30min."
    )


INVALID_VALUES = [
    (
        ModelConfig,
        {"num_attention_heads": 7},
        "`model.hidden_size` must be a multiple of `model.num_attention_heads=7`, got 768. "
        "Set e.g. model.num_attention_heads=6.",
    ),
    (ModelConfig, {"hidden_size": 0}, "`model.hidden_size` must be at least 1, got 0."),
    (ModelConfig, {"vocab_size": -64}, "`model.vocab_size` must be at least 1, got -64."),
    (ModelConfig, {"num_hidden_layers": 0}, "`model.num_hidden_layers` must be at least 1, got 0."),
    (ModelConfig, {"hidden_dropout_prob": 1.0}, "`model.hidden_dropout_prob` must be in [0, 1), got 1.0."),
    (
        ModelConfig,
        {"attention_probs_dropout_prob": 0.1},
        "`model.attention_probs_dropout_prob=0.1` is not supported with `model.architecture=mosaicbert`. "
        "Set it to 0.0: the attention kernels do not support dropout.",
    ),
    (ModelConfig, {"layer_norm_eps": 0.0}, "`model.layer_norm_eps` must be a positive finite number, got 0.0."),
    (
        ModelConfig,
        {"initializer_range": math.nan},
        "`model.initializer_range` must be a positive finite number, got nan.",
    ),
    (
        ModelConfig,
        {"pad_token_id": 30528},
        "`model.pad_token_id` must be less than `model.vocab_size=30528`, got 30528.",
    ),
    (DataConfig, {"sources": TEXT, "max_seq_len": 2}, "`data.max_seq_len` must be at least 3, got 2."),
    (DataConfig, {"sources": TEXT, "mask_rate": 0.0}, "`data.mask_rate` must be in (0, 1), got 0.0."),
    (
        DataConfig,
        {"sources": TEXT, "validation_fraction": 1.5},
        "`data.validation_fraction` must be in (0, 1), got 1.5.",
    ),
    (DataConfig, {"sources": TEXT, "num_workers": -1}, "`data.num_workers` must be at least 0, got -1."),
    (DataConfig, {"sources": TEXT, "min_characters": 0}, "`data.min_characters` must be at least 1, got 0."),
    (
        DataConfig,
        {"sources": {}},
        "`data.sources` must be non-empty, got {}. Name a source, e.g. data.sources.text.path=texts.jsonl.",
    ),
    (
        DataConfig,
        {"sources": {"a b": SourceConfig(path="a")}},
        "`data.sources` must be named with letters, digits, - and _, got 'a b'.",
    ),
    (DataConfig, {"sources": _weighted(a=0.0)}, "`data.sources.a.weight` must be a positive finite number, got 0.0."),
    (
        DataConfig,
        {"sources": _weighted(a=1.0, b=math.inf)},
        "`data.sources.b.weight` must be a positive finite number, got inf.",
    ),
    (
        DataConfig,
        {"sources": _weighted(a=1.0, b=None)},
        "`data.sources.b.weight` must be set for all sources or for none, got None.",
    ),
    (
        DataConfig,
        {"sources": _weighted(a=1.0, b=1e-5)},
        "`data.sources.b.weight` must be at least 1/10,000 of the sum of all weights, got 1e-05. "
        "Raise it, or remove the source.",
    ),
    (DataConfig, {"sources": TEXT, "num_partitions": 0}, "`data.num_partitions` must be at least 1, got 0."),
    (
        DataConfig,
        {"sources": TEXT, "num_partitions": 4, "partition": 4},
        "`data.partition` must be less than `data.num_partitions=4`, got 4.",
    ),
    (DataConfig, {"sources": TEXT, "partition": -1}, "`data.partition` must be at least 0, got -1."),
    (DataConfig, {"sources": TEXT, "final_mask_rate": 1.0}, "`data.final_mask_rate` must be in (0, 1), got 1.0."),
    (OptimizerConfig, {"peak_lr": 0.0}, "`optimizer.peak_lr` must be a positive finite number, got 0.0."),
    (OptimizerConfig, {"peak_lr": math.nan}, "`optimizer.peak_lr` must be a positive finite number, got nan."),
    (OptimizerConfig, {"betas": (0.9, 1.0)}, "`optimizer.betas` must be numbers in [0, 1), got (0.9, 1.0)."),
    (OptimizerConfig, {"eps": -1e-6}, "`optimizer.eps` must be a positive finite number, got -1e-06."),
    (OptimizerConfig, {"weight_decay": -1.0}, "`optimizer.weight_decay` must be in [0, 1), got -1.0."),
    (OptimizerConfig, {"momentum": 1.0}, "`optimizer.momentum` must be in [0, 1), got 1.0."),
    (OptimizerConfig, {"momentum": math.nan}, "`optimizer.momentum` must be in [0, 1), got nan."),
    (OptimizerConfig, {"decay_fraction": 1.1}, "`optimizer.decay_fraction` must be in [0, 1], got 1.1."),
    (
        OptimizerConfig,
        {"schedule": "warmup_stable_decay", "warmup_fraction": 0.5, "decay_fraction": 0.6},
        "`optimizer.decay_fraction` must be at most 1 - `optimizer.warmup_fraction=0.5`, got 0.6.",
    ),
    (OptimizerConfig, {"warmup_fraction": 1.1}, "`optimizer.warmup_fraction` must be in [0, 1], got 1.1."),
    (OptimizerConfig, {"final_lr_fraction": -0.1}, "`optimizer.final_lr_fraction` must be in [0, 1], got -0.1."),
    (
        TrainConfig,
        {"duration": "4095 samples"},
        "`train.duration` must be at least one step of 4096 samples, got '4095 samples'.",
    ),
    (
        TrainConfig,
        {"duration": "255 samples", **_GROWING},
        "`train.duration` must be at least one step of 256 samples, got '255 samples'.",
    ),
    (TrainConfig, {"duration": "70_000"}, _duration_error("train.duration", "70_000")),
    (
        TrainConfig,
        {"duration": "1 steps", "global_batch_samples": 0},
        "`train.global_batch_samples` must be at least 1, got 0.",
    ),
    (
        TrainConfig,
        {"duration": "1 steps", "micro_batch_tokens": 0},
        "`train.micro_batch_tokens` must be at least 1, got 0.",
    ),
    (
        TrainConfig,
        {"duration": "1 steps", "num_processes": 0},
        "`train.num_processes` must be auto or at least 1, got 0.",
    ),
    (
        TrainConfig,
        {"duration": "1 steps", "num_processes": 4097},
        "`train.num_processes` must be at most 4096, the number of samples of the smallest batch, got 4097. "
        "Raise `train.global_batch_samples` or `train.initial_batch_samples`.",
    ),
    (
        TrainConfig,
        {"duration": "1 steps", "num_processes": 257, **_GROWING},
        "`train.num_processes` must be at most 256, the number of samples of the smallest batch, got 257. "
        "Raise `train.global_batch_samples` or `train.initial_batch_samples`.",
    ),
    (
        TrainConfig,
        {"duration": "1 steps", "initial_batch_samples": 256},
        "`train.batch_warmup_tokens` must be set if `train.initial_batch_samples=256` is set, got None.",
    ),
    (
        TrainConfig,
        {"duration": "1 steps", "batch_warmup_tokens": 10**9},
        "`train.initial_batch_samples` must be set if `train.batch_warmup_tokens=1000000000` is set, got None.",
    ),
    (
        TrainConfig,
        {"duration": "1 steps", **_GROWING, "initial_batch_samples": 0},
        "`train.initial_batch_samples` must be at least 1, got 0.",
    ),
    (
        TrainConfig,
        {"duration": "1 steps", **_GROWING, "batch_warmup_tokens": 0},
        "`train.batch_warmup_tokens` must be at least 1, got 0.",
    ),
    (
        TrainConfig,
        {"duration": "1 steps", **_GROWING, "initial_batch_samples": 4097},
        "`train.initial_batch_samples` must be at most `train.global_batch_samples=4096`, got 4097.",
    ),
    (CheckpointConfig, {"interval": "0 steps"}, _duration_error("checkpoint.interval", "0 steps")),
    (CheckpointConfig, {"keep_last": 0}, "`checkpoint.keep_last` must be at least 1, got 0."),
    (CheckpointConfig, {"keep_every": 0}, "`checkpoint.keep_every` must be at least 1, got 0."),
    (FaultConfig, {"spike_deviations": 0.0}, "`faults.spike_deviations` must be a positive finite number, got 0.0."),
    (
        FaultConfig,
        {"spike_deviations": math.nan},
        "`faults.spike_deviations` must be a positive finite number, got nan.",
    ),
    (FaultConfig, {"window_steps": 7}, "`faults.window_steps` must be at least 8, got 7."),
    (FaultConfig, {"max_skipped_steps": 0}, "`faults.max_skipped_steps` must be at least 1, got 0."),
    (FaultConfig, {"max_rollbacks": -1}, "`faults.max_rollbacks` must be at least 0, got -1."),
    (LogConfig, {"interval_steps": 0}, "`log.interval_steps` must be at least 1, got 0."),
    (EvalConfig, {"mask_rate": 1.0}, "`eval.mask_rate` must be in (0, 1), got 1.0."),
    (EvalConfig, {"interval": "0 steps"}, _duration_error("eval.interval", "0 steps")),
    (EvalConfig, {"max_samples": 0}, "`eval.max_samples` must be at least 1, got 0."),
    (
        EvalConfig,
        {"fill_mask": ["no mask"]},
        "`eval.fill_mask` must be sentences with one [MASK] each, got ['no mask'].",
    ),
    (
        EvalConfig,
        {"fill_mask": ["[MASK] and [MASK]"]},
        "`eval.fill_mask` must be sentences with one [MASK] each, got ['[MASK] and [MASK]'].",
    ),
]


@pytest.mark.parametrize("section, fields, message", INVALID_VALUES, ids=[message for _, _, message in INVALID_VALUES])
def test_an_invalid_value_is_an_error_that_states_the_rule(section, fields, message):
    with pytest.raises(ConfigError) as raised:
        section(**fields)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"data": DataConfig(sources=TEXT, max_seq_len=16385)},
            "`train.micro_batch_tokens` must be at least `data.max_seq_len=16385`, got 16384.",
        ),
        (
            {"model": ModelConfig(vocab_size=30522)},
            "`model.vocab_size` must be a multiple of 64, got 30522. "
            "Set model.vocab_size=30528: the additional token ids are unused.",
        ),
        ({"run_name": "runs/one"}, "`run_name` must be a file name without slashes, got 'runs/one'."),
        ({"run_name": ".."}, "`run_name` must be a file name without slashes, got '..'."),
        ({"run_name": ""}, "`run_name` must be a file name without slashes, got ''."),
        ({"seed": 2**31}, "`seed` must be in [0, 2147483647], got 2147483648."),
        (
            {"data": DataConfig(sources=TEXT, final_mask_rate=0.15), "train": TrainConfig(duration="30min")},
            "`data.final_mask_rate=0.15` is not supported with `train.duration=30min`. "
            "Set the duration in steps, samples or tokens, which determine the number of steps.",
        ),
        (
            {"optimizer": OptimizerConfig(name="muon"), "train": TrainConfig(duration="1 steps", sharding="fsdp")},
            "`optimizer.name=muon` is not supported with `train.sharding=fsdp`. "
            "Set optimizer.name=decoupled_adamw or train.sharding=ddp.",
        ),
    ],
    ids=[
        "micro-batch-below-one-sequence",
        "vocabulary-not-padded",
        "slash",
        "parent",
        "empty",
        "seed",
        "mask-rate-schedule-in-time",
        "muon-with-fsdp",
    ],
)
def test_conflicting_sections_are_an_error_that_states_the_rule(change, message):
    with pytest.raises(ConfigError) as raised:
        replace(RECIPE, **change)
    assert str(raised.value) == message


@pytest.mark.parametrize("width, heads, suggested", [(768, 7, 6), (768, 11, 12), (1024, 1025, 1024)])
def test_the_suggested_number_of_heads_is_the_nearest_divisor(width, heads, suggested):
    with pytest.raises(ConfigError, match=rf"e\.g\. model\.num_attention_heads={suggested}\.$"):
        ModelConfig(hidden_size=width, num_attention_heads=heads)
    assert ModelConfig(hidden_size=width, num_attention_heads=suggested).head_dim * suggested == width


def test_the_bert_baseline_supports_attention_dropout():
    assert ModelConfig(architecture="bert", attention_probs_dropout_prob=0.1).attention_probs_dropout_prob == 0.1


def test_the_defaults_are_those_of_the_paper():
    model, optimizer, data = RECIPE.model, RECIPE.optimizer, RECIPE.data
    assert (model.vocab_size, model.hidden_size, model.num_hidden_layers) == (30528, 768, 12)
    assert (model.num_attention_heads, model.intermediate_size) == (12, 3072)
    assert (model.hidden_dropout_prob, model.layer_norm_eps) == (0.1, 1e-12)
    assert (optimizer.peak_lr, optimizer.betas, optimizer.eps) == (5e-4, (0.9, 0.98), 1e-6)
    assert (optimizer.weight_decay, optimizer.warmup_fraction, optimizer.final_lr_fraction) == (1e-5, 0.06, 0.02)
    assert (data.max_seq_len, data.mask_rate, RECIPE.train.global_batch_samples) == (128, 0.30, 4096)


@pytest.mark.parametrize(
    "train",
    [
        TrainConfig(duration="4096 samples"),
        TrainConfig(duration="256 samples", **_GROWING),
        TrainConfig(duration="1 tokens"),
        TrainConfig(duration="1 steps", num_processes=4096),
        TrainConfig(duration="1 steps", num_processes="auto"),
        TrainConfig(duration="1 steps", num_processes=256, **_GROWING),
        TrainConfig(duration="1 steps", **(_GROWING | {"initial_batch_samples": 4096})),
    ],
    ids=["samples", "growing", "tokens", "processes", "automatic", "processes-of-the-first-batch", "constant-batch"],
)
def test_one_step_per_run_and_one_sample_per_process_are_valid(train):
    assert replace(RECIPE, train=train).train == train


def test_a_schedule_without_a_constant_phase_is_valid():
    optimizer = OptimizerConfig(schedule="warmup_stable_decay", warmup_fraction=0.25, decay_fraction=0.75)
    assert optimizer.warmup_fraction + optimizer.decay_fraction == 1.0


def test_the_length_of_a_run_is_its_parsed_duration():
    assert RECIPE.train.length == Duration(10_000, "samples")


def test_the_smallest_batch_is_the_first_of_a_growing_batch():
    assert RECIPE.train.min_batch_samples == 4096
    assert TrainConfig(duration="1 steps", **_GROWING).min_batch_samples == 256


def test_the_default_store_is_in_the_run_folder():
    assert RECIPE.store_folder == RECIPE.run_folder / "store"


def test_a_given_store_folder_is_used():
    recipe = replace(RECIPE, data=replace(RECIPE.data, store="stores/c4"))
    assert recipe.store_folder.as_posix() == "stores/c4"
