"""Trainer, data collators and pipelines of transformers."""

import warnings

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.integrations.neftune import activate_neftune

from mosaicbert import MosaicBertConfig, MosaicBertForMaskedLM, MosaicBertForSequenceClassification, MosaicBertModel
from tests.model.test_inputs import SIZES


def train(model, folder, examples, collator=None, **arguments):
    settings = TrainingArguments(
        str(folder), max_steps=2, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, **arguments
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trainer(model, settings, train_dataset=examples, data_collator=collator).train()


@pytest.mark.parametrize("arguments", [{}, {"neftune_noise_alpha": 5.0}, {"gradient_checkpointing": True}])
def test_the_trainer_trains(arguments, tmp_path):
    torch.manual_seed(0)
    model = MosaicBertForSequenceClassification(MosaicBertConfig(**SIZES))
    before = model.classifier.out_proj.weight.detach().clone()
    example = {"input_ids": torch.arange(5, 12), "attention_mask": torch.ones(7, dtype=torch.int64), "labels": 1}
    result = train(model, tmp_path, [example] * 8, learning_rate=1e-2, **arguments)
    assert 0 < result.training_loss < 2
    assert not torch.equal(model.classifier.out_proj.weight, before)


def test_neftune_adds_noise_to_unpadded_input():
    model = MosaicBertForMaskedLM(MosaicBertConfig(**SIZES)).eval()
    inputs = {"input_ids": torch.arange(5, 12), "cu_seqlens": torch.tensor([0, 3, 7], dtype=torch.int32)}
    expected = model(**inputs).logits
    handle = activate_neftune(model, 5.0, accelerator=None)
    model.get_input_embeddings().train()  # the noise is for training
    assert not torch.allclose(model(**inputs).logits, expected)
    handle.remove()
    assert torch.equal(model(**inputs).logits, expected)


def test_flattened_batches_are_trained_as_separate_documents(tmp_path):
    torch.manual_seed(0)
    model = MosaicBertForMaskedLM(MosaicBertConfig(**SIZES))
    examples = [{"input_ids": list(range(5, 5 + length)), "labels": [7] * length} for length in (4, 1, 6)]
    collator = DataCollatorWithFlattening()
    batch = {name: value for name, value in collator(examples).items() if isinstance(value, torch.Tensor)}
    loss = model.eval()(**batch).loss
    # The collator excludes the first label of each document, as causal models do.
    singles = [model(torch.tensor([each["input_ids"]])).logits[0, 1:] for each in examples]
    expected = torch.nn.functional.cross_entropy(torch.cat(singles), torch.full((8,), 7))
    torch.testing.assert_close(loss, expected)
    assert train(model, tmp_path, examples, collator, per_device_train_batch_size=3).training_loss > 0


def test_the_auto_classes_without_a_pipeline_load_the_classes(tmp_path):
    MosaicBertForMaskedLM(MosaicBertConfig(**SIZES)).save_pretrained(tmp_path)
    assert type(AutoModelForTextEncoding.from_pretrained(tmp_path)) is MosaicBertModel
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is MosaicBertForMaskedLM


def test_the_token_classification_pipeline_labels_words(finished):
    _, run, _ = finished
    model = AutoModelForTokenClassification.from_pretrained(run.hugging_face, num_labels=3)
    words = pipeline("token-classification", model=model, tokenizer=str(run.hugging_face))("Returns the shape.")
    assert {word["entity"] for word in words} <= {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert [word["index"] for word in words] == list(range(1, len(words) + 1))


def test_the_feature_extraction_pipeline_returns_a_vector_per_token(finished):
    recipe, run, _ = finished
    (vectors,) = pipeline("feature-extraction", model=str(run.hugging_face))("Returns the shape.")
    assert {len(vector) for vector in vectors} == {recipe.model.hidden_size}
    assert AutoModelForMaskedLM.from_pretrained(run.hugging_face).config.hidden_size == recipe.model.hidden_size
