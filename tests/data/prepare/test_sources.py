import pytest

from mosaicbert.config import ConfigError, SourceConfig
from mosaicbert.data.prepare.sources import list_input_files
from tests.data.corpus import write_jsonl


def _list(path, **keys):
    return list_input_files({"text": SourceConfig(path=str(path), **keys)})


def _write(path, content=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_a_folder_lists_its_files_recursively_in_alphabetical_order(tmp_path):
    for name in ("b/1.jsonl", "a.jsonl", "b/0.jsonl", "c.jsonl.gz", "README.md", ".hidden"):
        _write(tmp_path / name)
    names = [input_file.path.removeprefix(f"{tmp_path}/") for input_file in _list(tmp_path)]
    assert names == ["a.jsonl", "b/0.jsonl", "b/1.jsonl", "c.jsonl.gz"]


def test_a_glob_lists_its_matches_in_alphabetical_order(tmp_path):
    for name in ("part-1.jsonl", "part-0.jsonl", "other.jsonl"):
        _write(tmp_path / name)
    assert [input_file.path for input_file in _list(tmp_path / "part-*.jsonl")] == [
        str(tmp_path / "part-0.jsonl"),
        str(tmp_path / "part-1.jsonl"),
    ]


def test_sources_are_in_the_order_of_the_recipe(tmp_path):
    _write(tmp_path / "a.jsonl"), _write(tmp_path / "b.jsonl")
    sources = {name: SourceConfig(path=str(tmp_path / f"{name}.jsonl")) for name in ("b", "a")}
    assert [input_file.source for input_file in list_input_files(sources)] == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("a.jsonl", ".jsonl", ""),
        ("a.json", ".jsonl", ""),
        ("a.json.gz", ".jsonl", ".gz"),
        ("a.jsonl.zst", ".jsonl", ".zst"),
        ("a.txt", ".txt", ""),
        ("a.txt.gz", ".txt", ".gz"),
        ("a.parquet", ".parquet", ""),
        ("a.arrow", ".arrow", ""),
    ],
)
def test_kind_and_compression_follow_from_the_file_name(tmp_path, name, kind, compression):
    (input_file,) = _list(_write(tmp_path / name))
    assert (input_file.kind, input_file.compression) == (kind, compression)


def test_an_input_file_has_the_size_of_its_file(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["some text"])
    assert _list(path)[0].size == path.stat().st_size


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: folder / "missing.jsonl", "must be an existing file, folder, glob or Hub dataset"),
        (lambda folder: folder / "missing-*.jsonl", "must be an existing file, folder, glob or Hub dataset"),
        (lambda folder: folder / "missing", "must be an existing file, folder, glob or Hub dataset"),
        (lambda folder: folder, r"must be a folder with \.jsonl, \.json, \.txt, \.parquet, \.arrow files"),
        (lambda folder: _write(folder / "notes.md").parent, r"must be a folder with \.jsonl"),
        (lambda folder: _write(folder / "x.csv"), r"must be a file name that ends in \.jsonl, .* got .*x\.csv"),
        (lambda folder: _write(folder / "x.parquet.gz"), "must be a file name that ends in"),
    ],
    ids=["file", "glob", "folder", "empty-folder", "folder-without-texts", "unknown-kind", "compressed-parquet"],
)
def test_a_path_without_text_raises_an_error_of_one_line_with_the_path(tmp_path, make, expected):
    path = make(tmp_path)
    with pytest.raises(ConfigError, match=expected) as caught:
        _list(path)
    assert "data.sources.text.path" in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_with_two_formats_raises_an_error_that_suggests_a_glob(tmp_path):
    _write(tmp_path / "a.jsonl"), _write(tmp_path / "b.parquet")
    with pytest.raises(
        ConfigError,
        match=r"must be files of one format, .* \.jsonl and \.parquet files: use a glob, e\.g\. .*/\*\.jsonl",
    ):
        _list(tmp_path)


@pytest.mark.parametrize("key", ["subset", "validation_split"])
@pytest.mark.parametrize("path", ["a.jsonl", "installed-documentation"])
def test_a_subset_or_split_of_a_local_source_raises_an_error(tmp_path, monkeypatch, path, key):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=rf"`data\.sources\.text\.{key}` must be null"):
        _list(path, **{key: "validation"})
