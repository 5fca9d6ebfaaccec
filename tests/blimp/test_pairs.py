"""Minimal pairs from local files, and errors of their rows."""

import json

import pytest
import zstandard

from mosaicbert.blimp.pairs import read_pairs
from mosaicbert.config import ConfigError
from mosaicbert.config.blimp import BlimpConfig


def _row(paradigm="agreement_1", phenomenon="agreement", number=0, **changes):
    row = {"UID": paradigm, "linguistics_term": phenomenon, "pairID": str(number)}
    return row | {"sentence_good": f"The cat {number} sleeps.", "sentence_bad": f"The cat {number} sleep."} | changes


_ROWS = [_row(number=number) for number in range(3)] + [_row("agreement_2", number=7), _row("islands_1", "islands")]


def _write(folder, rows, name="blimp.jsonl"):
    folder.mkdir(exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / name).write_bytes(zstandard.compress(content) if name.endswith(".zst") else content)
    return folder


def _config(folder, **changes):
    return BlimpConfig(model="m", data=str(folder), **changes)


def test_pairs_are_grouped_by_paradigm_and_phenomenon(tmp_path):
    data = read_pairs(_config(_write(tmp_path, _ROWS)))
    names = {phenomenon: [item.name for item in paradigms] for phenomenon, paradigms in data.paradigms.items()}
    assert names == {"agreement": ["agreement_1", "agreement_2"], "islands": ["islands_1"]}
    first = data.paradigms["agreement"][0]
    assert (first.good[2], first.bad[2]) == ("The cat 2 sleeps.", "The cat 2 sleep.")
    assert data.is_partial


def test_files_are_equivalent_to_one_compressed_file(tmp_path):
    whole = read_pairs(_config(_write(tmp_path / "whole", _ROWS, "blimp.jsonl.zst")))
    _write(tmp_path / "parts", _ROWS[:3], "a.jsonl")
    parts = read_pairs(_config(_write(tmp_path / "parts", _ROWS[3:], "b.jsonl")))
    assert parts == whole


def test_the_digest_depends_on_the_sentences_and_on_the_number_of_pairs(tmp_path):
    folder = _write(tmp_path, _ROWS)
    digests = {read_pairs(_config(folder, pairs_per_paradigm=number)).digest for number in (None, 1, 2)}
    digests.add(read_pairs(_config(_write(tmp_path, [*_ROWS[:-1], _row("islands_1", "islands", 4)]))).digest)
    assert len(digests) == 4


def test_the_first_pairs_of_each_paradigm_are_selected(tmp_path):
    data = read_pairs(_config(_write(tmp_path, _ROWS), pairs_per_paradigm=2))
    sizes = [len(paradigm.good) for paradigms in data.paradigms.values() for paradigm in paradigms]
    assert sizes == [2, 1, 1]


@pytest.mark.parametrize("changes", [{"sentence_bad": None}, {"sentence_good": ""}, {"UID": 3}])
def test_a_row_without_text_is_an_error_with_its_line(tmp_path, changes):
    folder = _write(tmp_path, [_row(), _row(**changes)])
    with pytest.raises(ConfigError, match="line 2, must have text in UID, linguistics_term, sentence_good"):
        read_pairs(_config(folder))


@pytest.mark.parametrize("content", [b"not json\n", b"[1]\n"])
def test_a_file_without_json_objects_is_an_error(tmp_path, content):
    (tmp_path / "pairs.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=r"pairs\.jsonl must have one JSON object per line, got"):
        read_pairs(_config(tmp_path))


def test_a_truncated_compressed_file_is_an_error(tmp_path):
    folder = _write(tmp_path, [_row(number=number) for number in range(500)], "pairs.jsonl.zst")
    path = folder / "pairs.jsonl.zst"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ConfigError, match=r"pairs\.jsonl\.zst must have one JSON object per line"):
        read_pairs(_config(folder))


@pytest.mark.parametrize("folder", ["./missing", "a/b/c"])
def test_a_missing_folder_is_not_taken_for_a_hub_dataset(folder):
    with pytest.raises(ConfigError, match="`data` must be an existing folder or the name of a Hub dataset"):
        read_pairs(_config(folder))


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"`data` must be a folder with \.jsonl or \.jsonl\.zst files"):
        read_pairs(_config(tmp_path))


def test_the_official_data_are_complete(shared_folder):
    data = read_pairs(_config(shared_folder / "data" / "blimp"))
    sizes = [len(paradigm.good) for paradigms in data.paradigms.values() for paradigm in paradigms]
    assert sizes == [1000] * 67
    assert not data.is_partial
