import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicbert.config import (
    CheckpointConfig,
    ConfigError,
    DataConfig,
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
from mosaicbert.config.load import load_recipe, recipe_differences, save_recipe

RECIPE = """
run_name: test
data:
  sources: {text: {path: text.jsonl}}
tokenizer:
  source: train
train:
  duration: 8192 samples
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def load_error(path, overrides=()):
    with pytest.raises(ConfigError) as raised:
        load_recipe(path, overrides)
    message = str(raised.value)
    assert "\n" not in message
    assert "full_key" not in message
    return message


def test_given_keys_are_loaded_and_other_keys_have_defaults(recipe_file):
    assert load_recipe(recipe_file) == Recipe(
        run_name="test",
        data=DataConfig(sources={"text": SourceConfig(path="text.jsonl")}),
        tokenizer=TokenizerConfig(source="train"),
        train=TrainConfig(duration="8192 samples"),
    )


def test_overrides_take_precedence_over_the_file(recipe_file):
    recipe = load_recipe(
        recipe_file, ["train.duration=4096 samples", "optimizer.betas=[0.8,0.9]", "data.sources.text.subset=en"]
    )
    source = recipe.data.sources["text"]
    assert (recipe.train.duration, recipe.optimizer.betas, source.subset) == ("4096 samples", (0.8, 0.9), "en")


def test_a_number_can_contain_underscores(recipe_file):
    assert load_recipe(recipe_file, ["train.micro_batch_tokens=1_000_000"]).train.micro_batch_tokens == 1_000_000
    length = load_recipe(recipe_file, ["train.duration=286_720_000 samples"]).train.length
    assert (length.amount, length.unit) == (286_720_000, "samples")


@pytest.mark.parametrize("loggers", [[], ["tensorboard"], ["tensorboard", "wandb"]], ids=["none", "one", "both"])
def test_a_list_is_loaded(recipe_file, loggers):
    assert load_recipe(recipe_file, [f"log.loggers=[{','.join(loggers)}]"]).log.loggers == loggers


def test_an_optional_value_can_be_null(recipe_file):
    assert load_recipe(recipe_file, ["train.num_processes=4", "data.store=null"]).data.store is None


# "$" starts an interpolation and "???" is a missing value in OmegaConf.
texts = st.text(min_size=1, max_size=20).filter(lambda text: "$" not in text and text != "???")
names = texts.filter(lambda text: Path(text).name == text and text != ".." and "\0" not in text)
fractions = st.floats(1e-9, 1.0, exclude_max=True)


@st.composite
def sources(draw):
    names = draw(st.lists(st.from_regex(r"[A-Za-z_][\w-]{0,8}", fullmatch=True), min_size=1, max_size=3, unique=True))
    weighted = draw(st.booleans())
    return {
        name: SourceConfig(
            path=draw(texts),
            subset=draw(st.none() | texts),
            weight=draw(st.floats(0.1, 10.0)) if weighted else None,
        )
        for name in names
    }


@st.composite
def durations(draw, smallest_samples=1):
    unit = draw(st.sampled_from(["steps", "samples", "tokens", "s", "min", "h"]))
    return f"{draw(st.integers(smallest_samples, 10**9)):_} {unit}"


@st.composite
def recipes(draw):
    heads = draw(st.integers(1, 20))
    length = draw(st.integers(3, 8192))
    batch = draw(st.integers(1, 10**5))
    initial = draw(st.none() | st.integers(1, batch))
    return Recipe(
        run_name=draw(names),
        seed=draw(st.integers(0, 2**31 - 1)),
        data=DataConfig(
            sources=draw(sources()),
            store=draw(st.none() | texts),
            skip_invalid_documents=draw(st.booleans()),
            max_seq_len=length,
            mask_rate=draw(fractions),
        ),
        tokenizer=TokenizerConfig(source=draw(texts)),
        model=ModelConfig(
            hidden_size=heads * draw(st.integers(1, 128)),
            num_attention_heads=heads,
            vocab_size=64 * draw(st.integers(1, 1000)),
            hidden_dropout_prob=draw(st.floats(0.0, 0.999)),
        ),
        optimizer=OptimizerConfig(
            peak_lr=draw(st.floats(1e-12, 1.0)),
            betas=(draw(st.floats(0.0, 0.9999)), draw(st.floats(0.0, 0.9999))),
            name=draw(st.sampled_from(["decoupled_adamw", "stable_adamw", "muon"])),
            schedule=draw(st.sampled_from(["linear", "warmup_stable_decay"])),
            momentum=draw(st.floats(0.0, 0.9999)),
        ),
        train=TrainConfig(
            duration=draw(durations(smallest_samples=batch)),
            global_batch_samples=batch,
            initial_batch_samples=initial,
            batch_warmup_tokens=None if initial is None else draw(st.integers(1, 10**9)),
            micro_batch_tokens=length + draw(st.integers(0, 10**6)),
            precision=draw(st.sampled_from(["bf16", "fp32", "auto"])),
            compile=draw(st.none() | st.booleans()),
        ),
        checkpoint=CheckpointConfig(
            interval=draw(durations()),
            keep_last=draw(st.integers(1, 100)),
            keep_every=draw(st.none() | st.integers(1, 100)),
        ),
        faults=FaultConfig(
            spike_deviations=draw(st.floats(0.1, 100.0)),
            window_steps=draw(st.integers(8, 1000)),
            max_skipped_steps=draw(st.integers(1, 100)),
            max_rollbacks=draw(st.integers(0, 100)),
        ),
        log=LogConfig(
            interval_steps=draw(st.integers(1, 1000)),
            loggers=draw(st.lists(st.sampled_from(["tensorboard", "wandb"]), unique=True)),
        ),
        eval=EvalConfig(
            interval=draw(durations()), fill_mask=[f"{text} [MASK]" for text in draw(st.lists(texts, max_size=3))]
        ),
    )


@settings(max_examples=15)
@given(recipe=recipes())
def test_a_saved_recipe_is_loaded_as_an_equal_recipe(recipe):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        save_recipe(recipe, path)
        assert load_recipe(path) == recipe


@settings(max_examples=15)
@given(recipe=recipes())
def test_numbers_can_be_set_by_overrides(recipe):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        # Durations are strings. That of RECIPE can be shorter than one step with the drawn batch size.
        path.write_text(RECIPE.replace("8192 samples", "1000 steps"))
        differences = recipe_differences(load_recipe(path), recipe)
        numbers = {
            key: new for key, (_, new) in differences.items() if isinstance(new, (int, float)) and "sources" not in key
        }
        overridden = load_recipe(path, [f"{key}={value!r}" for key, value in numbers.items()])
        assert numbers.keys().isdisjoint(recipe_differences(overridden, recipe))


def test_equal_recipes_have_no_differences(recipe_file):
    assert recipe_differences(load_recipe(recipe_file), load_recipe(recipe_file)) == {}


def test_differences_name_each_key_with_its_old_and_new_value(recipe_file):
    old, new = load_recipe(recipe_file), load_recipe(recipe_file, ["optimizer.peak_lr=1e-3", "run_name=other"])
    assert recipe_differences(old, new) == {"run_name": ("test", "other"), "optimizer.peak_lr": (5e-4, 1e-3)}


@pytest.mark.parametrize(
    "addition, expected",
    [
        ("model:\n  hiden_size: 768", ["unknown key `model.hiden_size`", "Did you mean `model.hidden_size`?"]),
        ("modle:\n  hidden_size: 768", ["unknown key `modle`", "Did you mean `model`?"]),
        ("modle: {}", ["unknown key `modle`", "Did you mean `model`?"]),
        ("sead: 3", ["unknown key `sead`", "Did you mean `seed`?"]),
        ("3: seed", ["unknown key `3`"]),
        ("model:\n  hidden_size:\n    width: 768", ["`model.hidden_size` must be an integer, got {'width': 768}."]),
        ("model:\n  hidden_size: wide", ["`model.hidden_size` must be an integer, got 'wide'."]),
        ("model:\n  hidden_size: 768.5", ["`model.hidden_size` must be an integer, got 768.5."]),
        ("model:\n  architecture: gpt", ["`model.architecture` must be one of mosaicbert, bert, got 'gpt'."]),
        ("optimizer:\n  betas: [0.9]", ["`optimizer.betas` must be a list of 2 numbers, got [0.9]."]),
        ("eval:\n  fill_mask: '[MASK]'", ["`eval.fill_mask` must be a list of strings, got '[MASK]'."]),
        ("model: 3", ["`model` must be a section, got 3. Set its keys, e.g. `model.architecture`"]),
        ("model:", ["`model` must be a section, got None. Set its keys", "or remove it."]),
        ("model: [768]", ["`model` must be a section, got [768]. Set its keys"]),
        (
            "model:\n  num_attention_heads: 7",
            ["`model.num_attention_heads=7`", "Set e.g. model.num_attention_heads=6."],
        ),
        (
            "model:\n  vocab_size: 30522",
            ["`model.vocab_size` must be a multiple of 64, got 30522.", "model.vocab_size=30528"],
        ),
        ("seed: ${sead}", ["`seed` must have a value that can be resolved", "'sead' not found"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_line_is_an_error_of_one_line_that_names_the_key(recipe_file, addition, expected):
    recipe_file.write_text(f"{RECIPE}\n{addition}\n")
    message = load_error(recipe_file)
    assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    "override, expected",
    [
        ("train.durations=1h", ["override", "unknown key `train.durations`", "Did you mean `train.duration`?"]),
        ("train.duration", ["An override must be section.key=value, got 'train.duration'."]),
        ("train.duration=500", ["`train.duration` must be a positive whole number of steps", "got '500'."]),
        ("eval.interval=often", ["`eval.interval` must be a positive whole number of steps", "got 'often'."]),
        (
            "log.loggers=[paper]",
            ["override: `log.loggers` must be a list of names among tensorboard, wandb, got ['paper']."],
        ),
        ("log.loggers=tensorboard", ["override: `log.loggers` must be a list of names", "got 'tensorboard'."]),
        ("train.compile=perhaps", ["override: `train.compile` must be true or false, or null, got 'perhaps'."]),
        (
            "optimizer.name=sgd",
            ["override: `optimizer.name` must be one of decoupled_adamw, stable_adamw, muon, got 'sgd'."],
        ),
        ("=3", ["override", "unknown key ``"]),
        ("train.precision=fp8", ["override: `train.precision` must be one of bf16, fp32, auto, got 'fp8'."]),
        ("train.duration=null", ["override: `train.duration` must be a string, got None."]),
        (
            "train.micro_batch_tokens=100",
            ["`train.micro_batch_tokens` must be at least `data.max_seq_len=128`, got 100."],
        ),
        (
            "data.skip_invalid_documents=perhaps",
            ["`data.skip_invalid_documents` must be true or false, got 'perhaps'."],
        ),
        ("data.source=x", ["override", "unknown key `data.source`", "Did you mean `data.sources`?"]),
        ("data.sources=x", ["override: `data.sources` must be a section, got 'x'.", "data.sources.NAME.path"]),
        (
            "data.sources.text=x",
            ["override: `data.sources.text` must be a section, got 'x'.", "data.sources.text.path"],
        ),
        ("data.sources.text.pth=x", ["override: unknown key `data.sources.text.pth`", "`data.sources.text.path`?"]),
        ("data.sources.more.weight=1", ["`data.sources.more.path` must be set."]),
        ("seed=true", ["override: `seed` must be an integer, got True."]),
        ("model=base", ["override: `model` must be a section, got 'base'. Set its keys"]),
        ("eval.fill_mask={a: 1}", ["override: `eval.fill_mask` must be a list of strings, got {'a': 1}."]),
        ("run_name=[a", ["run_name=[a"]),
        ("run_name=${", ["Overrides must have YAML values, got ['run_name=${']"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_override_is_an_error_of_one_line_that_names_the_key(recipe_file, override, expected):
    message = load_error(recipe_file, [override])
    assert all(part in message for part in expected), message


@pytest.mark.parametrize("key", ["run_name", "data", "tokenizer", "train"])
def test_a_missing_key_is_named(recipe_file, key):
    recipe_file.write_text(re.sub(rf"^{key}:.*\n( .*\n)?", "", RECIPE, flags=re.MULTILINE))
    assert load_error(recipe_file) == f"{recipe_file}: `{key}` must be set. Add it to the recipe."


def test_a_missing_key_of_a_section_is_named(recipe_file):
    recipe_file.write_text(RECIPE.replace("sources: {text: {path: text.jsonl}}", "max_seq_len: 128"))
    assert load_error(recipe_file) == f"{recipe_file}: `data.sources` must be set. Add it to the recipe."


@pytest.mark.parametrize(
    "content",
    [
        b"run_name: [",
        b"run_name:\n\t- x",
        b"a: *b",
        RECIPE.encode() + b"run_name: again\n",
        b"\xff\xfe\xff",
        b"null: 1",
    ],
    ids=["open-bracket", "tab", "undefined-alias", "repeated-key", "not-text", "key-without-name"],
)
def test_invalid_yaml_is_an_error_that_names_the_file(recipe_file, content):
    recipe_file.write_bytes(content)
    assert load_error(recipe_file).startswith(f"{recipe_file} is not valid YAML (")


def test_a_list_is_not_a_recipe(recipe_file):
    recipe_file.write_text("- run_name: test\n")
    assert "must be a mapping of sections, got a list." in load_error(recipe_file)


def test_a_missing_file_is_named_with_an_example(tmp_path):
    message = load_error(tmp_path / "absent.yaml")
    assert "absent.yaml must be an existing YAML file" in message
    assert "recipes/quickstart.yaml" in message


def test_a_folder_is_not_a_recipe(tmp_path):
    assert "must be an existing YAML file" in load_error(tmp_path)
