"""Tests of fine-tuning with different encoders."""

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    EuroBertConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from mosaicbert.config.glue import Protocol
from mosaicbert.finetune.composer_model import ClassifierComposerModel
from mosaicbert.finetune.metrics import MULTI_LABEL, SINGLE_LABEL
from mosaicbert.finetune.model import max_input_length, save_encoder
from mosaicbert.finetune.tables import Examples
from mosaicbert.finetune.trainer import FinetuneSettings, fine_tune
from mosaicbert.model.pretrained import load_pretrained_tokenizer
from tests.finetune.encoders import load_test_classifier, make_examples

_SIZES = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIZES |= {"intermediate_size": 48, "pad_token_id": 0, "max_position_embeddings": 40}
_HUGGING_FACE_CONFIGS = {
    "roberta": RobertaConfig(**_SIZES | {"pad_token_id": 1}, type_vocab_size=1),
    "electra": ElectraConfig(**_SIZES, embedding_size=16),
    "distilbert": DistilBertConfig(
        vocab_size=512, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=40
    ),
    "deberta-v2": DebertaV2Config(**_SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": ModernBertConfig(**_SIZES),
    "eurobert": EuroBertConfig(**_SIZES, num_key_value_heads=2, mask_token_id=4),
}


def _settings(**changes):
    protocol = Protocol(epochs=12, batch_size=8, peak_lr=5e-3, weight_decay=1e-6, num_seeds=1)
    fields = {"problem_type": SINGLE_LABEL, "seed": 19, "shuffle": True, "max_seq_len": 32, "precision": torch.float32}
    return FinetuneSettings(**({"protocol": protocol} | fields | changes))


@pytest.mark.parametrize("architecture", _HUGGING_FACE_CONFIGS)
def test_encoders_of_hugging_face_are_fine_tuned(architecture, mosaicbert_folder, tmp_path):
    name = str(tmp_path / "pretrained")
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(_HUGGING_FACE_CONFIGS[architecture]).save_pretrained(name)
    backend = load_pretrained_tokenizer(mosaicbert_folder).backend_tokenizer
    special_tokens = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    input_names = ["input_ids", "attention_mask"]  # without token types, only [SEP] separates the texts of a pair
    PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=input_names, **special_tokens).save_pretrained(
        name
    )
    model, tokenizer = load_test_classifier(name), load_pretrained_tokenizer(name)
    long_pairs = Examples(texts=(["the value " * 60, "b"] * 8, ["list"] * 16), labels=[0, 1] * 8)
    (logits,) = fine_tune(model, tokenizer, long_pairs, [long_pairs], _settings(max_seq_len=64))
    assert logits.shape == (16, 2)
    assert logits.argmax(dim=1).tolist() == long_pairs.labels
    assert max_input_length(model, 64) == (38 if architecture == "roberta" else 40)
    save_encoder(model, tokenizer, tmp_path / "encoder")
    reloaded = load_test_classifier(str(tmp_path / "encoder"), num_labels=3)
    before, after = model.base_model.state_dict(), reloaded.base_model.state_dict()
    assert all(torch.equal(after[key], weight.cpu()) for key, weight in before.items())


@pytest.mark.parametrize("fixture", ["mosaicbert_folder", "bert_folder"])
def test_fine_tuning_learns_a_simple_task_and_is_bit_reproducible(fixture, request):
    name = request.getfixturevalue(fixture)
    train, evaluation_sets = make_examples(), [make_examples(8), make_examples(6)]

    def run(**changes):
        model, tokenizer = load_test_classifier(name), load_pretrained_tokenizer(name)
        return fine_tune(model, tokenizer, train, evaluation_sets, _settings(**changes))

    logits = run()
    assert [tuple(set_logits.shape) for set_logits in logits] == [(8, 2), (6, 2)]
    assert logits[0].argmax(dim=1).tolist() == evaluation_sets[0].labels
    assert all(torch.equal(*pair) for pair in zip(logits, run(), strict=True))
    assert not torch.equal(logits[0], run(shuffle=False)[0])
    assert not torch.equal(logits[0], run(seed=8364)[0])


def test_class_weights_change_the_loss(mosaicbert_folder):
    logits = torch.tensor([[2.0, 0.0], [0.5, 1.0], [1.0, 1.0]])
    model = load_test_classifier(mosaicbert_folder)
    weights = (0.5, 3.0)
    single = ClassifierComposerModel(model, SINGLE_LABEL, torch.float32, weights)
    labels = torch.tensor([0, 1, 1])
    losses = [float(torch.logsumexp(row, 0) - row[label]) for row, label in zip(logits, labels, strict=True)]
    expected = (0.5 * losses[0] + 3.0 * (losses[1] + losses[2])) / 6.5
    assert float(single.loss(logits, {"labels": labels})) == pytest.approx(expected)
    several = ClassifierComposerModel(model, MULTI_LABEL, torch.float32, weights)
    multi_hot = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    factors = torch.where(multi_hot > 0, torch.tensor(weights), 1.0)
    signed = torch.where(multi_hot > 0, logits, -logits)
    expected = float((factors * torch.log1p(torch.exp(-signed))).mean())
    assert float(several.loss(logits, {"labels": multi_hot})) == pytest.approx(expected)
