import ast
import gc
import itertools
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import SourceConfig
from mosaicbert.data.prepare import demo_corpus
from mosaicbert.data.prepare.demo_corpus import read_installed_documentation
from mosaicbert.data.prepare.readers import FilePosition, decode, read_blocks
from mosaicbert.data.prepare.sources import list_input_files


def _read():
    return [text for texts, _ in read_installed_documentation() for text in texts]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Small Python environment in a temporary folder."""
    for name, content in {
        "stdlib/module.py": '"""Module docstring."""\ndef f():\n    """Function\n    docstring."""\n',
        "stdlib/test/test_module.py": '"""Skipped test module."""\n',
        "stdlib/site-packages/base.py": '"""Skipped module of the base interpreter."""\n',
        "packages/tool/broken.py": '"""Python 2."""\nprint "x"\n',
        "packages/tool/guide.rst": "Usage of the tool.",
        "packages/tool/table.txt": "1 2 3 4 5 6 7 8",
        "packages/tool/latin.txt": "Gr\u00fc\u00dfe".encode("latin-1"),
        "packages/tool-1.0.dist-info/METADATA": "Name: tool\nVersion: 1.0\n\nDescription of the tool.\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    paths = {"stdlib": tmp_path / "stdlib", "purelib": tmp_path / "packages", "platlib": tmp_path / "packages"}
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(paths[name]))


@pytest.mark.usefixtures("environment")
def test_docstrings_descriptions_and_files_are_read_in_path_order():
    assert _read() == [
        "Usage of the tool.",
        "Description of the tool.\n",
        "Module docstring.",
        "Function\ndocstring.",
    ]


@pytest.mark.usefixtures("environment")
def test_reading_can_continue_after_any_block(monkeypatch):
    monkeypatch.setattr("mosaicbert.data.prepare.readers.BLOCK_BYTES", 25)
    (input_file,) = list_input_files({"docs": SourceConfig(path="installed-documentation")})
    blocks = list(read_blocks(input_file, FilePosition()))
    assert len(blocks) > 2
    assert [list(read_blocks(input_file, block.end)) for block in blocks] == [
        blocks[n + 1 :] for n in range(len(blocks))
    ]
    assert [text for block in blocks for text in decode(block)] == _read()


def test_workers_read_the_same_texts_as_a_single_process(monkeypatch):
    files = set(sorted(demo_corpus._list_files())[:30])
    monkeypatch.setattr(demo_corpus, "_list_files", lambda: files)
    expected = _read()
    monkeypatch.setattr(demo_corpus, "_FILES_PER_TASK", 7)
    assert _read() == expected


def test_the_fraction_of_files_read_increases_to_one(monkeypatch):
    files = set(sorted(demo_corpus._list_files())[:4])
    monkeypatch.setattr(demo_corpus, "_list_files", lambda: files)
    monkeypatch.setattr(demo_corpus, "_FILES_PER_TASK", 1)
    assert [fraction for _, fraction in read_installed_documentation()] == [0.25, 0.5, 0.75, 1.0]


def test_this_environment_has_more_documents_than_files_and_no_empty_document():
    files = sorted(demo_corpus._list_files())
    sample = files[:: max(1, len(files) // 150)]
    documents = demo_corpus._read_files(sample)
    assert len(documents) > len(sample) > 100
    assert all(documents)


def test_the_files_include_the_installed_packages():
    assert Path(pytest.__file__) in demo_corpus._list_files()


_NESTED = """
if a:
    def f():
        class C: pass
elif b:
    class D:
        async def g(self): pass
else:
    def h(): pass
try:
    def i(): pass
except E:
    def j(): pass
except F:
    def k(): pass
else:
    def l(): pass
finally:
    def m(): pass
for x in y:
    while x:
        def n(): pass
    else:
        def o(): pass
else:
    def p(): pass
with x:
    match y:
        case 1:
            def q(): pass
        case _:
            async def r():
                async with x:
                    async for y in x:
                        def s(): return lambda: (x if y else z)
def t(): pass
"""


@pytest.mark.parametrize("source", [_NESTED, Path(ast.__file__).read_text(), Path(sysconfig.__file__).read_text()])
def test_nodes_with_docstrings_are_in_the_order_of_the_syntax_tree(source):
    tree = ast.parse(source)
    expected = [node for node in ast.walk(tree) if isinstance(node, demo_corpus._DOCUMENTED_NODES)]
    assert list(demo_corpus._documented_nodes(tree)) == expected


@given(st.one_of(st.text(), st.text(st.characters(max_codepoint=127))))
def test_the_number_of_letters_is_exact(text):
    assert demo_corpus._count_letters(text) == sum(map(str.isalpha, text))


@pytest.mark.parametrize("source", ['"""Docstring."""', '"""Python 2."""\nprint "x"'])
def test_the_garbage_collector_is_enabled_after_a_file(source):
    demo_corpus._docstrings(source)
    assert gc.isenabled()


def test_a_text_without_letters_is_skipped(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "module.py").write_text('"""  """\ndef function():\n    """Function docstring."""\n')
    paths = [tmp_path / "empty.txt", tmp_path / "module.py"]
    assert demo_corpus._read_files(paths) == ["Function docstring."]


def test_a_lone_surrogate_in_a_docstring_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "module.py"
    path.write_text('"""Lone surrogate \\ud800 in a docstring."""\n')
    monkeypatch.setattr(demo_corpus, "_list_files", lambda: {path})
    (input_file,) = list_input_files({"docs": SourceConfig(path="installed-documentation")})
    (block,) = itertools.islice(read_blocks(input_file, FilePosition()), 2)
    assert list(decode(block)) == ["Lone surrogate ? in a docstring."]
