import itertools
import sysconfig
from pathlib import Path

import pytest

from mosaicbert.config import SourceConfig
from mosaicbert.data.prepare import demo_corpus
from mosaicbert.data.prepare.demo_corpus import read_installed_documentation
from mosaicbert.data.prepare.readers import FilePosition, decode, read_blocks
from mosaicbert.data.prepare.sources import list_input_files


def _read():
    return [text for texts, _ in read_installed_documentation() for text in texts]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A small environment of its own."""
    for name, content in {
        "stdlib/module.py": '"""What the module is for."""\ndef f():\n    """What the function\n    does."""\n',
        "stdlib/test/test_module.py": '"""Left out, since it is a test."""\n',
        "stdlib/site-packages/base.py": '"""Left out, since it is of another environment."""\n',
        "packages/tool/broken.py": '"""Python 2."""\nprint "x"\n',
        "packages/tool/guide.rst": "How the tool is used.",
        "packages/tool/table.txt": "1 2 3 4 5 6 7 8",
        "packages/tool/latin.txt": "Gr\u00fc\u00dfe".encode("latin-1"),
        "packages/tool-1.0.dist-info/METADATA": "Name: tool\nVersion: 1.0\n\nWhat the tool does.\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    places = {"stdlib": tmp_path / "stdlib", "purelib": tmp_path / "packages", "platlib": tmp_path / "packages"}
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(places[name]))


@pytest.mark.usefixtures("environment")
def test_docstrings_descriptions_and_files_are_read_in_the_order_of_their_paths():
    assert _read() == [
        "How the tool is used.",
        "What the tool does.\n",
        "What the module is for.",
        "What the function\ndoes.",
    ]


@pytest.mark.usefixtures("environment")
def test_the_source_is_read_on_behind_any_block(monkeypatch):
    monkeypatch.setattr("mosaicbert.data.prepare.readers.BLOCK_BYTES", 25)
    (input_file,) = list_input_files({"docs": SourceConfig(path="installed-documentation")})
    blocks = list(read_blocks(input_file, FilePosition()))
    assert len(blocks) > 2
    assert [list(read_blocks(input_file, block.end)) for block in blocks] == [
        blocks[n + 1 :] for n in range(len(blocks))
    ]
    assert [text for block in blocks for text in decode(block)] == _read()


def test_processes_read_the_same_texts_as_this_one_does(monkeypatch):
    files = set(sorted(demo_corpus._list_files())[:30])
    monkeypatch.setattr(demo_corpus, "_list_files", lambda: files)
    alone = _read()
    monkeypatch.setattr(demo_corpus, "_FILES_PER_TASK", 7)
    assert _read() == alone


def test_the_fraction_of_files_that_was_read_grows_to_all_of_them(monkeypatch):
    files = set(sorted(demo_corpus._list_files())[:4])
    monkeypatch.setattr(demo_corpus, "_list_files", lambda: files)
    monkeypatch.setattr(demo_corpus, "_FILES_PER_TASK", 1)
    assert [fraction for _, fraction in read_installed_documentation()] == [0.25, 0.5, 0.75, 1.0]


def test_this_environment_has_more_documents_than_files_and_no_empty_one():
    files = sorted(demo_corpus._list_files())
    some = files[:: max(1, len(files) // 150)]
    found = demo_corpus._read_files(some)
    assert len(found) > len(some) > 100
    assert all(found)


def test_this_environments_own_packages_are_among_its_files():
    assert Path(pytest.__file__) in demo_corpus._list_files()


def test_a_text_without_a_letter_is_none(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "module.py").write_text('"""  """\ndef function():\n    """Says something."""\n')
    paths = [tmp_path / "empty.txt", tmp_path / "module.py"]
    assert demo_corpus._read_files(paths) == ["Says something."]


def test_half_a_character_in_a_docstring_does_not_stop_the_source(tmp_path, monkeypatch):
    path = tmp_path / "module.py"
    path.write_text('"""Half a pair \\ud800 in a docstring."""\n')
    monkeypatch.setattr(demo_corpus, "_list_files", lambda: {path})
    (input_file,) = list_input_files({"docs": SourceConfig(path="installed-documentation")})
    (block,) = itertools.islice(read_blocks(input_file, FilePosition()), 2)
    assert list(decode(block)) == ["Half a pair ? in a docstring."]
