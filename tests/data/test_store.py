import json
import math
import pickle
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordPiece

from mosaicbert.config import ConfigError
from mosaicbert.data.store import (
    SplitRecord,
    StoreRecord,
    TokenStore,
    count_ids,
    count_text_bytes,
    id_dtype,
    open_tokenizer,
    read_shard,
    sha256_of,
    unigram_entropy,
    write_index,
    write_shard,
)
from mosaicbert.data.tokenizer import hash_tokenizer
from tests.data.corpus import samples_of, trained, write_tokenizer

_SHARDS = [[[1, 2, 3], [4]], [[5, 6]], [[7], [8, 9, 511], [10]]]
_ALL = [sample for shard in _SHARDS for sample in shard]


def _write_split(folder, dtype=np.uint16):
    folder.mkdir(parents=True)
    records = []
    for number, shard in enumerate(_SHARDS):
        ids = np.array([token for sample in shard for token in sample], dtype=dtype)
        seqlens = np.array([len(sample) for sample in shard], dtype=np.int32)
        records.append(write_shard(folder / f"data-{number:05d}.arrow", "ab"[number // 2], ids, seqlens))
    write_index(folder, np.dtype(dtype), records)
    return SplitRecord(shards=records)


def _record(folder, splits):
    return StoreRecord(
        prepared_from={"data.max_seq_len": 32},
        tokenizer_sha256=sha256_of(folder / "tokenizer.json") if (folder / "tokenizer.json").exists() else "",
        splits=splits,
        revisions={"a": None, "b": None},
        files={"a": (1, 30), "b": (1, 30)},
        documents={"a": 3, "b": 3},
        text_bytes={"a": 30, "b": 30},
        skipped_documents={"a": {}, "b": {"duplicate": 1}},
        unigram_entropy=2.5,
        bytes_per_token=4.0,
    )


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    splits = {split: _write_split(folder / split) for split in ("train", "validation")}
    write_tokenizer(folder)
    _record(folder, splits).write(folder)
    return folder


def test_samples_can_be_read_in_any_order_across_shards(store):
    numbers = np.array([5, 0, 2, 3, 0])
    assert [ids.tolist() for ids in TokenStore(store, "train").read(numbers)] == [_ALL[number] for number in numbers]


def test_samples_are_views_of_the_mapped_files(store):
    (ids,) = TokenStore(store, "train").read(np.array([0]))
    assert not ids.flags.owndata and not ids.flags.writeable


def test_a_store_counts_its_samples_by_source(store):
    token_store = TokenStore(store, "train")
    assert token_store.num_samples == 6
    assert token_store.samples_by_source == {"a": 3, "b": 3}


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_hugging_face_datasets_reads_a_split_with_its_data_type(tmp_path, dtype):
    _write_split(tmp_path / "train", dtype)
    dataset = datasets.load_from_disk(str(tmp_path / "train"))
    assert dataset["input_ids"][:] == _ALL
    assert dataset.features["input_ids"].feature.dtype == np.dtype(dtype).name


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_id_dtype_is_the_smallest_type_for_the_vocabulary(vocab_size, dtype):
    assert id_dtype(vocab_size) == dtype


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_shard_stores_the_largest_id_of_its_type(tmp_path, dtype):
    max_id = np.array([np.iinfo(dtype).max], dtype=dtype)
    write_shard(tmp_path / "a.arrow", "text", max_id, np.array([1], dtype=np.int32))
    ids, offsets = read_shard(tmp_path / "a.arrow")
    assert (ids.dtype, ids.tolist(), offsets.tolist()) == (np.dtype(dtype), max_id.tolist(), [0, 1])


def test_the_record_of_a_shard_has_the_checksum_of_its_file(store):
    for shard in StoreRecord.read(store).splits["train"].shards:
        assert sha256_of(store / "train" / shard.file) == shard.sha256


def test_a_record_is_equal_after_writing_and_reading(store):
    assert StoreRecord.read(store) == _record(store, StoreRecord.read(store).splits)


def test_a_store_opens_without_reading_its_shards(store):
    for path in store.rglob("*.arrow"):
        path.unlink()
    assert TokenStore(store, "train").num_samples == 6


def test_only_a_read_of_a_missing_shard_raises_an_error(store):
    (store / "train" / "data-00001.arrow").unlink()
    token_store = TokenStore(store, "train")
    assert [ids.tolist() for ids in token_store.read(np.array([0, 1, 3, 4, 5]))] == _SHARDS[0] + _SHARDS[2]
    with pytest.raises(ConfigError, match=r"train/data-00001\.arrow is missing"):
        token_store.read(np.array([2]))


@pytest.mark.parametrize("end", [0, 1, 100, -8, -200])
def test_a_read_of_a_truncated_shard_raises_an_error_with_its_path(tmp_path, end):
    folder = tmp_path / "store"
    ids = np.arange(1000, dtype=np.uint16)
    (folder / "train").mkdir(parents=True)
    shard = write_shard(folder / "train" / "data-00000.arrow", "a", ids, np.full(100, 10, dtype=np.int32))
    _record(folder, {"train": SplitRecord(shards=[shard])}).write(folder)
    path = folder / "train" / "data-00000.arrow"
    path.write_bytes(path.read_bytes()[:end])
    try:
        samples = samples_of(folder, "train")
    except ConfigError as error:
        assert f"{path} is corrupted (" in str(error)
        assert "\n" not in str(error)
    else:
        assert (end, samples) == (
            -8,
            np.arange(1000).reshape(100, 10).tolist(),
        )  # only the end-of-stream marker is missing


def test_an_arrow_file_with_other_columns_is_not_a_shard(tmp_path):
    table = pa.table({"other": [1]})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(ConfigError, match=r"a\.arrow is corrupted"):
        read_shard(tmp_path / "a.arrow")


def test_a_shard_with_other_counts_than_its_record_raises_an_error(store):
    shutil.copy(store / "train" / "data-00002.arrow", store / "train" / "data-00000.arrow")
    with pytest.raises(ConfigError, match=r"data-00000\.arrow must have 2 samples and 4 tokens, .* got 3 and 5"):
        samples_of(store, "train")


def _without(key):
    def edit(text):
        content = json.loads(text)
        del content[key]
        return json.dumps(content)

    return edit


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "",
        lambda _: "[]",
        lambda _: "{}",
        lambda _: "null",
        lambda text: text.replace('"samples"', '"sample"'),
        _without("splits"),
        _without("documents"),
    ],
    ids=["half", "empty", "list", "object", "null", "other-key", "no-splits", "no-documents"],
)
def test_a_corrupted_record_raises_an_error_with_its_path(store, corrupt):
    path = store / "store.json"
    path.write_text(corrupt(path.read_text()))
    with pytest.raises(ConfigError, match=r"store\.json is corrupted \(.*Delete .* and prepare it again") as caught:
        TokenStore(store, "train")
    assert "\n" not in str(caught.value)


def test_a_missing_store_raises_an_error_with_the_prepare_command(tmp_path):
    with pytest.raises(ConfigError, match="mosaicbert prepare RECIPE"):
        StoreRecord.read(tmp_path / "none")


def test_a_pickled_store_does_not_include_its_tokens(store):
    token_store = TokenStore(store, "train")
    token_store.read(np.arange(6))
    pickled = pickle.dumps(token_store)
    assert len(pickled) < 300
    assert [ids.tolist() for ids in pickle.loads(pickled).read(np.arange(6))] == _ALL


def test_open_tokenizer_returns_the_tokenizer_of_the_store(store):
    assert hash_tokenizer(open_tokenizer(store, StoreRecord.read(store))) == hash_tokenizer(trained())


@pytest.mark.parametrize(
    ("corrupt", "expected"),
    [
        (lambda path: path.unlink(), r"tokenizer\.json is missing"),
        (lambda path: path.write_text("{"), "must be the tokenizer that the store was prepared with"),
        (
            lambda path: path.write_text(path.read_text().replace("true", "false")),
            "must be the tokenizer that the store was prepared with",
        ),
    ],
    ids=["missing", "corrupted", "different"],
)
def test_a_missing_or_different_tokenizer_raises_an_error(store, corrupt, expected):
    corrupt(store / "tokenizer.json")
    with pytest.raises(ConfigError, match=expected):
        open_tokenizer(store, StoreRecord.read(store))


def test_counts_do_not_depend_on_the_chunk_size(monkeypatch):
    monkeypatch.setattr("mosaicbert.data.store._MAX_IDS", 7)
    ids = np.random.default_rng(5).integers(0, 20, 100).astype(np.uint16)
    assert count_ids(ids, 20).tolist() == np.bincount(ids, minlength=20).tolist()


def test_open_shards_do_not_count_towards_the_open_file_limit(store):
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from mosaicbert.data.store import TokenStore, read_shard\n"
        "path = next(Path(sys.argv[1]).glob('train/*.arrow'))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "print(sum(len(ids) for ids, _ in [read_shard(path) for _ in range(200)]))\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(store)], capture_output=True, text=True, check=True)
    assert int(result.stdout) > 0


def test_the_entropy_of_a_uniform_distribution_is_the_logarithm_of_its_size():
    assert unigram_entropy(np.array([5, 5, 0, 5, 5])) == pytest.approx(math.log(4))


def test_a_loss_is_converted_to_bits_per_byte(store):
    # ln(16) nats are 4 bits, of a token of 4 bytes.
    assert StoreRecord.read(store).bits_per_byte(math.log(16)) == pytest.approx(1.0)


def test_text_bytes_are_those_of_the_decoded_samples():
    tokenizer = Tokenizer(WordPiece({"[UNK]": 0, "na": 1, "##ïve": 2, "of": 3}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    ids, offsets = np.array([1, 2, 3, 3, 1, 3]), np.array([0, 3, 4, 6], dtype=np.int32)
    assert count_text_bytes(ids, offsets, tokenizer) == len("naïve of".encode()) + len("of") + len("na of")
