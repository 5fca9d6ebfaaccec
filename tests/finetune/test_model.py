"""Encoders with a new classifier: ours, a published one, and Hugging Face's, by one road."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    EuroBertConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMConfig,
    XLMForSequenceClassification,
)

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import Protocol
from mosaicbert.finetune.collator import Collator, _order, build_loader, encode
from mosaicbert.finetune.metrics import REGRESSION, SINGLE_LABEL
from mosaicbert.finetune.model import (
    is_unpadded,
    load_classifier,
    load_tokenizer,
    longest_input,
    save_encoder,
)
from mosaicbert.finetune.tables import Examples
from mosaicbert.finetune.trainer import Settings, fine_tune
from mosaicbert.model.modeling import MosaicBertForSequenceClassification

_WORDS = ("returns", "raises")


@pytest.fixture(scope="module")
def ours(finished):
    return str(finished[1].hugging_face)


@pytest.fixture(scope="module")
def theirs(ours, tmp_path_factory):
    """A BERT of Hugging Face, with our tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertForMaskedLM(BertConfig(vocab_size=512, max_position_embeddings=48, **shape)).save_pretrained(folder)
    load_tokenizer(ours).save_pretrained(folder)
    return str(folder)


def _load(name, num_labels=2, problem=SINGLE_LABEL, seed=19):
    return load_classifier(name, num_labels=num_labels, problem=problem, seed=seed)


def _examples(number=32):
    texts = [f"{_WORDS[index % 2]} the value of item {index} of the list" for index in range(number)]
    return Examples(texts=(texts,), labels=[index % 2 for index in range(number)])


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_only_the_new_weights_depend_on_the_seed(kind, request):
    name = request.getfixturevalue(kind)
    same, again, other = _load(name), _load(name), _load(name, seed=8364)
    for key, weight in same.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight), key
        is_new = key in ("classifier.weight", "pooler.dense.weight", "bert.pooler.dense.weight")
        assert torch.equal(other.state_dict()[key], weight) != is_new, key
    assert is_unpadded(same) == (kind == "ours")


def test_the_encoder_is_that_of_the_folder(theirs):
    pretrained = BertForMaskedLM.from_pretrained(theirs).bert.state_dict()
    loaded = _load(theirs).bert.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in pretrained.items())


@pytest.mark.parametrize("kind", ["masked_lm", "sequence_classification"])
def test_a_published_mosaicbert_is_loaded_as_one(kind, original_mosaicbert):
    assert isinstance(_load(str(original_mosaicbert / kind)), MosaicBertForSequenceClassification)


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_another_task_begins_with_the_encoder_and_a_new_classifier(kind, request, tmp_path):
    name = request.getfixturevalue(kind)
    first = _load(name, num_labels=3)
    with torch.no_grad():
        for weight in first.parameters():
            weight += 1.0
    save_encoder(first, load_tokenizer(name), tmp_path)
    second = _load(str(tmp_path), num_labels=1, problem=REGRESSION)
    assert second.classifier.out_features == 1
    kept = [key for key in first.state_dict() if not key.startswith("classifier.")]
    assert any("pooler" in key for key in kept)
    assert all(torch.equal(second.state_dict()[key], first.state_dict()[key]) for key in kept)
    assert float(second.classifier.weight.detach().abs().max()) < 0.5


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no encoder that can be fine-tuned"):
        _load(str(tmp_path))
    with pytest.raises(ConfigError, match="has no tokenizer that fits"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("change", [-1, 1], ids=["too-many-tokens", "as-many"])
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(change, theirs, tmp_path):
    shutil.copytree(theirs, tmp_path / "model")
    written = tmp_path / "model" / "config.json"
    size = len(load_tokenizer(theirs)) + change
    written.write_text(json.dumps(json.loads(written.read_text()) | {"vocab_size": size}))
    if change > 0:
        assert load_tokenizer(str(tmp_path / "model"))
        return
    with pytest.raises(ConfigError, match=r"has no tokenizer that fits: .* tokens were found, and the model has"):
        load_tokenizer(str(tmp_path / "model"))


def test_a_model_without_its_tokenizers_files_is_refused(theirs, tmp_path):
    BertForMaskedLM.from_pretrained(theirs).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no tokenizer that fits"):
        load_tokenizer(str(tmp_path))


def test_weights_of_another_kind_of_model_are_refused(theirs, tmp_path):
    model = BertForMaskedLM.from_pretrained(theirs)
    renamed = {name.replace("attention", "mixing"): weight for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=renamed)
    with pytest.raises(ConfigError, match="its weights are not those of BertForSequenceClassification"):
        _load(str(tmp_path))


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_weights_of_another_shape_are_refused(kind, request, tmp_path):
    shutil.copytree(request.getfixturevalue(kind), tmp_path / "model")
    written = tmp_path / "model" / "config.json"
    config = json.loads(written.read_text())
    written.write_text(json.dumps(config | {"intermediate_size": 2 * config["intermediate_size"]}))
    with pytest.raises(ConfigError, match="are missing or of another shape"):
        _load(str(tmp_path / "model"))


@pytest.mark.parametrize("kind", ["ours", "theirs"])
@pytest.mark.parametrize("num_labels", [2, 3])
def test_a_classifier_that_is_there_is_left_behind(kind, num_labels, request, tmp_path):
    before = _load(request.getfixturevalue(kind), seed=1)
    before.save_pretrained(tmp_path)
    after = _load(str(tmp_path), num_labels=num_labels, seed=2)
    assert after.classifier.out_features == num_labels
    assert not torch.equal(after.classifier.weight[:2], before.classifier.weight)


def test_the_classifier_of_an_xlm_is_left_behind_as_well(tmp_path):
    config = XLMConfig(vocab_size=512, emb_dim=32, n_layers=1, n_heads=2, num_labels=3)
    before = XLMForSequenceClassification(config)
    before.save_pretrained(tmp_path)
    after = _load(str(tmp_path), num_labels=3, seed=2)
    assert not torch.equal(after.sequence_summary.summary.weight, before.sequence_summary.summary.weight)
    assert torch.equal(after.transformer.embeddings.weight, before.transformer.embeddings.weight)


_SHAPE = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_SHAPE |= {"intermediate_size": 48, "pad_token_id": 0, "max_position_embeddings": 40}
_OTHERS = {  # with what each calls its sizes
    "roberta": RobertaConfig(**_SHAPE | {"pad_token_id": 1}, type_vocab_size=1),
    "electra": ElectraConfig(**_SHAPE, embedding_size=16),
    "distilbert": DistilBertConfig(
        vocab_size=512, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=40
    ),
    "deberta-v2": DebertaV2Config(**_SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": ModernBertConfig(**_SHAPE),
    "eurobert": EuroBertConfig(**_SHAPE, num_key_value_heads=2, mask_token_id=4),
}


@pytest.mark.parametrize("kind", _OTHERS)
def test_encoders_of_other_kinds_are_fine_tuned_by_the_same_road(kind, ours, tmp_path):
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(_OTHERS[kind]).save_pretrained(tmp_path / "a")
    plain = load_tokenizer(ours).backend_tokenizer
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    names = ["input_ids", "attention_mask"]  # they tell pairs apart by [SEP] alone
    PreTrainedTokenizerFast(tokenizer_object=plain, model_input_names=names, **special).save_pretrained(tmp_path / "a")
    name = str(tmp_path / "a")
    model, tokenizer = _load(name), load_tokenizer(name)
    long = Examples(texts=(["the value " * 60, "b"] * 8, ["list"] * 16), labels=[0, 1] * 8)
    (logits,) = fine_tune(model, tokenizer, long, [long], _settings(max_seq_len=64))
    assert logits.shape == (16, 2)
    assert logits.argmax(dim=1).tolist() == long.labels
    assert longest_input(model, 64) == (38 if kind == "roberta" else 40)
    save_encoder(model, tokenizer, tmp_path / "b")
    chained = _load(str(tmp_path / "b"), num_labels=3)
    before, after = model.base_model.state_dict(), chained.base_model.state_dict()
    assert all(torch.equal(after[key], weight.cpu()) for key, weight in before.items())


def test_a_model_with_positions_is_given_no_more_tokens_than_it_has(ours, theirs):
    assert longest_input(_load(theirs), 256) == 48
    assert longest_input(_load(ours), 256) == 256


def test_pairs_are_told_apart_and_the_longer_text_is_cut_first(ours):
    tokenizer = load_tokenizer(ours)
    pair = Examples(texts=(["the value " * 30], ["list"]), labels=None)
    (encoded,) = encode(tokenizer, pair, 20)
    ids, types = encoded.ids["input_ids"], encoded.ids["token_type_ids"]
    assert len(ids) == len(types) == 20
    second = tokenizer("list", add_special_tokens=False)["input_ids"]
    assert ids[-1 - len(second) :] == [*second, tokenizer.sep_token_id]
    assert types == [0] * (19 - len(second)) + [1] * (len(second) + 1)
    assert encoded.label is None


def test_a_batch_gives_the_same_logits_padded_and_unpadded(ours):
    model, tokenizer = _load(ours).eval(), load_tokenizer(ours)
    texts = ["a", "the value of the list", "returns the number of items in it"]
    encoded = encode(tokenizer, Examples(texts=(texts,), labels=[0, 1, 1]), 256)
    collators = [Collator(is_unpadded=unpadded, pad_token_id=tokenizer.pad_token_id) for unpadded in (True, False)]
    batches = [collator(encoded) for collator in collators]
    assert [batch.pop("labels").tolist() for batch in batches] == [[0, 1, 1]] * 2
    assert batches[0]["input_ids"].ndim == 1
    assert batches[0]["max_seqlen"] == batches[1]["input_ids"].shape[1]
    with torch.no_grad():
        unpadded, padded = (model(**batch).logits for batch in batches)
    assert float((unpadded - padded).abs().max()) < 1e-5


@pytest.mark.parametrize("labels", [[0.5, 2.0], [[1, 0, 1], [0, 0, 1]]])
def test_numbers_and_several_labels_are_fp32(labels, ours):
    encoded = encode(load_tokenizer(ours), Examples(texts=(["a", "b"],), labels=labels), 16)
    batch = Collator(is_unpadded=True, pad_token_id=0)(encoded)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == labels


@given(
    number=st.integers(1, 50), size=st.integers(1, 20), epochs=st.integers(1, 3), seed=st.integers(0, 99) | st.none()
)
def test_an_epoch_has_every_example_once(number, size, epochs, seed):
    batches = list(_order(number, size, epochs, seed))
    order = np.concatenate(batches).reshape(epochs, number)
    assert all(sorted(epoch) == list(range(number)) for epoch in order)
    assert len(batches) == epochs * -(-number // size)
    if seed is None:
        assert (order == np.arange(number)).all()


def test_orders_differ_by_seed_and_epoch_and_come_again():
    def order(seed):
        return np.concatenate(list(_order(100, 7, 2, seed))).reshape(2, 100).tolist()

    assert order(1) == order(1)
    assert len({tuple(epoch) for seed in (1, 2) for epoch in order(seed)}) == 4


def test_a_loader_has_all_epochs_behind_each_other(ours):
    examples = encode(load_tokenizer(ours), _examples(10), 32)
    loader = build_loader(examples, Collator(is_unpadded=True, pad_token_id=0), 4, epochs=3, seed=1)
    assert [len(batch["labels"]) for batch in loader] == [4, 4, 2] * 3


def _settings(**changes):
    protocol = Protocol(epochs=12, batch_size=8, peak_lr=5e-3, weight_decay=1e-6, num_seeds=1)
    fields = {"problem": SINGLE_LABEL, "seed": 19, "shuffle": True, "max_seq_len": 32, "precision": torch.float32}
    return Settings(**({"protocol": protocol} | fields | changes))


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_fine_tuning_learns_a_plain_task_and_repeats_its_bits(kind, request):
    name = request.getfixturevalue(kind)
    train, others = _examples(), [_examples(8), _examples(6)]

    def run(**changes):
        return fine_tune(_load(name), load_tokenizer(name), train, others, _settings(**changes))

    logits = run()
    assert [tuple(found.shape) for found in logits] == [(8, 2), (6, 2)]
    assert logits[0].argmax(dim=1).tolist() == others[0].labels
    assert all(torch.equal(*pair) for pair in zip(logits, run(), strict=True))
    assert not torch.equal(logits[0], run(shuffle=False)[0])
    assert not torch.equal(logits[0], run(seed=8364)[0])
