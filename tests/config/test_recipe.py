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
IMPOSSIBLE = [
    (ModelConfig, {"num_attention_heads": 7}, "model.num_attention_heads=7"),
    (ModelConfig, {"hidden_size": 0}, "model.hidden_size=0"),
    (ModelConfig, {"vocab_size": -64}, "model.vocab_size=-64"),
    (ModelConfig, {"num_hidden_layers": 0}, "model.num_hidden_layers=0"),
    (ModelConfig, {"hidden_dropout_prob": 1.0}, "model.hidden_dropout_prob=1.0"),
    (ModelConfig, {"attention_probs_dropout_prob": 0.1}, "model.attention_probs_dropout_prob=0.1"),
    (ModelConfig, {"layer_norm_eps": 0.0}, "model.layer_norm_eps=0.0"),
    (ModelConfig, {"initializer_range": math.nan}, "model.initializer_range=nan"),
    (ModelConfig, {"pad_token_id": 30528}, "model.pad_token_id=30528"),
    (DataConfig, {"sources": TEXT, "max_seq_len": 2}, "data.max_seq_len=2"),
    (DataConfig, {"sources": TEXT, "mask_rate": 0.0}, "data.mask_rate=0.0"),
    (DataConfig, {"sources": TEXT, "validation_fraction": 1.5}, "data.validation_fraction=1.5"),
    (DataConfig, {"sources": TEXT, "num_workers": -1}, "data.num_workers=-1"),
    (DataConfig, {"sources": TEXT, "min_characters": 0}, "data.min_characters=0"),
    (DataConfig, {"sources": {}}, "data.sources is empty"),
    (DataConfig, {"sources": {"a b": SourceConfig(path="a")}}, "data.sources.a b"),
    (DataConfig, {"sources": _weighted(a=0.0)}, "data.sources.a.weight=0.0"),
    (DataConfig, {"sources": _weighted(a=1.0, b=math.inf)}, "data.sources.b.weight=inf"),
    (DataConfig, {"sources": _weighted(a=1.0, b=None)}, "data.sources.b.weight is missing"),
    (DataConfig, {"sources": _weighted(a=1.0, b=1e-5)}, "data.sources.b.weight=1e-05 is less than 1/10,000"),
    (DataConfig, {"sources": TEXT, "num_partitions": 0}, "data.num_partitions=0"),
    (DataConfig, {"sources": TEXT, "num_partitions": 4, "partition": 4}, "data.partition=4"),
    (DataConfig, {"sources": TEXT, "partition": -1}, "data.partition=-1"),
    (DataConfig, {"sources": TEXT, "final_mask_rate": 1.0}, "data.final_mask_rate=1.0"),
    (OptimizerConfig, {"peak_lr": 0.0}, "optimizer.peak_lr=0.0"),
    (OptimizerConfig, {"peak_lr": math.nan}, "optimizer.peak_lr=nan"),
    (OptimizerConfig, {"betas": (0.9, 1.0)}, "optimizer.betas=(0.9, 1.0)"),
    (OptimizerConfig, {"eps": -1e-6}, "optimizer.eps=-1e-06"),
    (OptimizerConfig, {"weight_decay": -1.0}, "optimizer.weight_decay=-1.0"),
    (OptimizerConfig, {"momentum": 1.0}, "optimizer.momentum=1.0"),
    (OptimizerConfig, {"momentum": math.nan}, "optimizer.momentum=nan"),
    (OptimizerConfig, {"decay_fraction": 1.1}, "optimizer.decay_fraction=1.1"),
    (
        OptimizerConfig,
        {"schedule": "warmup_stable_decay", "warmup_fraction": 0.5, "decay_fraction": 0.6},
        "optimizer.warmup_fraction=0.5 and optimizer.decay_fraction=0.6",
    ),
    (OptimizerConfig, {"warmup_fraction": 1.1}, "optimizer.warmup_fraction=1.1"),
    (OptimizerConfig, {"final_lr_fraction": -0.1}, "optimizer.final_lr_fraction=-0.1"),
    (TrainConfig, {"duration": "4095 samples"}, "train.duration='4095 samples'"),
    (TrainConfig, {"duration": "255 samples", **_GROWING}, "train.duration='255 samples'"),
    (TrainConfig, {"duration": "70_000"}, "train.duration='70_000'"),
    (TrainConfig, {"duration": "1 steps", "global_batch_samples": 0}, "train.global_batch_samples=0"),
    (TrainConfig, {"duration": "1 steps", "micro_batch_tokens": 0}, "train.micro_batch_tokens=0"),
    (TrainConfig, {"duration": "1 steps", "num_processes": 0}, "train.num_processes=0"),
    (TrainConfig, {"duration": "1 steps", "num_processes": 4097}, "train.num_processes=4097"),
    (TrainConfig, {"duration": "1 steps", "num_processes": 257, **_GROWING}, "train.num_processes=257"),
    (TrainConfig, {"duration": "1 steps", "initial_batch_samples": 256}, "train.batch_warmup_tokens=None"),
    (TrainConfig, {"duration": "1 steps", "batch_warmup_tokens": 10**9}, "train.initial_batch_samples=None"),
    (
        TrainConfig,
        {"duration": "1 steps", **_GROWING, "initial_batch_samples": 0},
        "train.initial_batch_samples=0",
    ),
    (TrainConfig, {"duration": "1 steps", **_GROWING, "batch_warmup_tokens": 0}, "train.batch_warmup_tokens=0"),
    (
        TrainConfig,
        {"duration": "1 steps", **_GROWING, "initial_batch_samples": 4097},
        "train.initial_batch_samples=4097",
    ),
    (CheckpointConfig, {"interval": "0 steps"}, "checkpoint.interval='0 steps'"),
    (CheckpointConfig, {"keep_last": 0}, "checkpoint.keep_last=0"),
    (CheckpointConfig, {"keep_every": 0}, "checkpoint.keep_every=0"),
    (FaultConfig, {"spike_deviations": 0.0}, "faults.spike_deviations=0.0"),
    (FaultConfig, {"spike_deviations": math.nan}, "faults.spike_deviations=nan"),
    (FaultConfig, {"window_steps": 7}, "faults.window_steps=7"),
    (FaultConfig, {"max_skipped_steps": 0}, "faults.max_skipped_steps=0"),
    (FaultConfig, {"max_rollbacks": -1}, "faults.max_rollbacks=-1"),
    (LogConfig, {"interval_steps": 0}, "log.interval_steps=0"),
    (EvalConfig, {"mask_rate": 1.0}, "eval.mask_rate=1.0"),
    (EvalConfig, {"interval": "0 steps"}, "eval.interval='0 steps'"),
    (EvalConfig, {"max_samples": 0}, "eval.max_samples=0"),
    (EvalConfig, {"fill_mask": ["no mask"]}, "'no mask'"),
    (EvalConfig, {"fill_mask": ["[MASK] and [MASK]"]}, "'[MASK] and [MASK]'"),
]


@pytest.mark.parametrize("section, fields, named", IMPOSSIBLE, ids=[named for _, _, named in IMPOSSIBLE])
def test_impossible_value_is_named_with_a_remedy_in_one_line(section, fields, named):
    with pytest.raises(ConfigError) as raised:
        section(**fields)
    message = str(raised.value)
    assert named in message
    assert "; " in message, "no remedy"
    assert "\n" not in message


@pytest.mark.parametrize(
    "change, names",
    [
        (
            {"data": DataConfig(sources=TEXT, max_seq_len=16385)},
            ["train.micro_batch_tokens=16384", "data.max_seq_len=16385"],
        ),
        ({"model": ModelConfig(vocab_size=30522)}, ["model.vocab_size=30522", "model.vocab_size=30528"]),
        ({"run_name": "runs/one"}, ["run_name='runs/one'"]),
        ({"run_name": ".."}, ["run_name='..'"]),
        ({"run_name": ""}, ["run_name=''"]),
        ({"seed": 2**31}, ["seed=2147483648"]),
        (
            {"data": DataConfig(sources=TEXT, final_mask_rate=0.15), "train": TrainConfig(duration="30min")},
            ["data.final_mask_rate=0.15", "train.duration='30min'"],
        ),
        (
            {"optimizer": OptimizerConfig(name="muon"), "train": TrainConfig(duration="1 steps", sharding="fsdp")},
            ["optimizer.name=muon", "train.sharding=fsdp"],
        ),
    ],
    ids=[
        "budget-below-one-sequence",
        "vocabulary-not-padded",
        "slash",
        "parent",
        "empty",
        "seed",
        "last-step-unknown",
        "muon-of-pieces",
    ],
)
def test_sections_that_do_not_fit_together_are_named_with_a_remedy_in_one_line(change, names):
    with pytest.raises(ConfigError) as raised:
        replace(RECIPE, **change)
    message = str(raised.value)
    assert all(name in message for name in names)
    assert "; " in message, "no remedy"
    assert "\n" not in message


@pytest.mark.parametrize("width, heads, suggested", [(768, 7, 6), (768, 11, 12), (1024, 1025, 1024)])
def test_the_suggested_number_of_heads_is_the_nearest_that_works(width, heads, suggested):
    with pytest.raises(ConfigError, match=rf"e\.g\. model\.num_attention_heads={suggested}\.$"):
        ModelConfig(hidden_size=width, num_attention_heads=heads)
    assert ModelConfig(hidden_size=width, num_attention_heads=suggested).head_dim * suggested == width


def test_the_bert_baseline_may_drop_attention_weights():
    assert ModelConfig(architecture="bert", attention_probs_dropout_prob=0.1).attention_probs_dropout_prob == 0.1


def test_defaults_are_the_papers():
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
        TrainConfig(duration="1 steps", num_processes=256, **_GROWING),
        TrainConfig(duration="1 steps", **(_GROWING | {"initial_batch_samples": 4096})),
    ],
    ids=["samples", "growing", "tokens", "processes", "processes-of-the-first-batch", "a-batch-of-one-size"],
)
def test_a_run_may_be_as_short_as_one_step_and_a_step_as_small_as_one_sample_for_each_process(train):
    assert replace(RECIPE, train=train).train == train


def test_a_schedule_without_a_level_part_may_take_the_whole_run():
    whole = OptimizerConfig(schedule="warmup_stable_decay", warmup_fraction=0.25, decay_fraction=0.75)
    assert whole.warmup_fraction + whole.decay_fraction == 1.0


def test_the_length_of_a_run_is_its_duration_read():
    assert RECIPE.train.length == Duration(10_000, "samples")


def test_the_smallest_batch_is_the_first_of_a_growing_one():
    assert RECIPE.train.smallest_batch_samples == 4096
    assert TrainConfig(duration="1 steps", **_GROWING).smallest_batch_samples == 256


def test_a_store_without_a_name_lies_in_the_run_folder():
    assert RECIPE.store_folder == RECIPE.run_folder / "store"


def test_a_named_store_lies_where_it_is_named():
    named = replace(RECIPE, data=replace(RECIPE.data, store="stores/c4"))
    assert named.store_folder.as_posix() == "stores/c4"
