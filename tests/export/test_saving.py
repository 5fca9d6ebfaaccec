"""Folders that the Hugging Face API saves: each loads with `trust_remote_code=True`, without this package."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, Trainer, TrainingArguments

from mosaicbert.export.parity import _link_requirements
from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.model.modeling import MosaicBertForMaskedLM, MosaicBertForSequenceClassification
from mosaicbert.model.remote_code import AUTO_MAP
from tests.tokenizers import letter_tokenizer

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}

# Loads a folder with each Auto class, saves and loads it again, and compares the outputs.
_PROGRAM = """
import importlib.util, json, sys

sys.path.append(sys.argv[1])
assert importlib.util.find_spec("mosaicbert") is None
import torch, transformers

*folders, scratch = sys.argv[2:]
inputs = {"input_ids": torch.arange(5, 25).reshape(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.int64)}
inputs["attention_mask"][0, 6:] = 0
for folder in folders:
    config = json.load(open(f"{folder}/config.json"))
    for name in config["auto_map"]:
        has_other_size = name.endswith("Choice") and config["architectures"][0].endswith("Classification")
        if name == "AutoConfig" or has_other_size:
            continue
        auto_class = getattr(transformers, name)
        batch = {key: value[:, None] for key, value in inputs.items()} if name.endswith("Choice") else inputs
        strict = not name.endswith(("MaskedLM", "PreTraining"))  # their heads may be new here, others always
        first = auto_class.from_pretrained(folder, trust_remote_code=True, strict=strict)
        first.save_pretrained(f"{scratch}/{name}")
        second = auto_class.from_pretrained(f"{scratch}/{name}", trust_remote_code=True)
        with torch.no_grad():
            outputs = [model.eval()(**batch, return_dict=False)[0] for model in (first, second)]
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6, msg=f"{folder} {name}")
    print("loaded", folder)
"""


def check_loadable(folders, tmp_path):
    """Check that folders load with their own code, in an environment with only torch and transformers."""
    _link_requirements(tmp_path / "site", ("torch", "transformers"))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, tmp_path / "site", *folders, tmp_path / "scratch"]
    completed = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    assert completed.stdout.split() == [word for folder in folders for word in ("loaded", str(folder))], (
        completed.stderr
    )


@pytest.fixture
def model():
    torch.manual_seed(3)
    return MosaicBertForMaskedLM(MosaicBertConfig(**SIZES))


def test_every_way_of_saving_gives_a_folder_with_its_code(model, tmp_path):
    names = ("model", "loaded", "classifier", "trainer", "sharded", "sentences", "merged")
    folders = [tmp_path / name for name in names]
    model.save_pretrained(folders[0])
    AutoModelForMaskedLM.from_pretrained(folders[0]).save_pretrained(folders[1])
    AutoModelForSequenceClassification.from_pretrained(folders[0], num_labels=3).save_pretrained(folders[2])
    arguments = TrainingArguments(
        str(tmp_path / "runs"), max_steps=1, save_steps=1, report_to=[], use_cpu=True, per_device_train_batch_size=2
    )
    example = {"input_ids": torch.arange(5, 12), "labels": torch.arange(5, 12)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(model, arguments, train_dataset=[example, example]).train()
    (tmp_path / "runs" / "checkpoint-1").rename(folders[3])
    model.save_pretrained(folders[4], max_shard_size="20KB")
    assert len(list(folders[4].glob("model-*.safetensors"))) > 1
    letter_tokenizer().save_pretrained(folders[0])
    encoder = Transformer(str(folders[0]))
    SentenceTransformer(modules=[encoder, Pooling(32)], device="cpu").save(str(folders[5]))
    get_peft_model(model, LoraConfig(target_modules=["qkv"])).merge_and_unload().save_pretrained(folders[6])
    check_loadable(folders, tmp_path)


def test_the_configuration_names_the_code_of_all_classes(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    modules = {path.partition(".")[0] for path in AUTO_MAP.values()}
    assert modules <= {path.stem for path in tmp_path.glob("*.py")}


def test_only_the_main_process_writes_the_code(model, tmp_path):
    model.save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.glob("*.py"))


@pytest.mark.parametrize("fields", [{"num_hidden_layers": 1}, {"tie_word_embeddings": False}])
def test_a_changed_configuration_is_an_error_that_names_the_option(fields, model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="or pass strict=False to initialize missing weights"):
        AutoModelForMaskedLM.from_pretrained(tmp_path, **fields)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path, strict=False, **fields)
    assert loaded(torch.arange(5, 12)[None]).logits.isfinite().all()
    assert torch.equal(loaded.model.layers[0].mlp.down.weight, model.model.layers[0].mlp.down.weight)


def test_a_masked_lm_is_loaded_from_a_classifier_on_request(tmp_path):
    classifier = MosaicBertForSequenceClassification(MosaicBertConfig(**SIZES))
    classifier.save_pretrained(tmp_path)
    loaded = MosaicBertForMaskedLM.from_pretrained(tmp_path, strict=False)
    for name, weight in classifier.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight), name
