import base64
import re

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.report.command import report
from tests.report.folders import evaluation_lines, training_lines, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "first", [{"step": 1, "tokens": 9, "seconds": 1.0, "loss": 6.0}])


def test_both_files_are_written_and_the_page_contains_the_image(run, tmp_path):
    png, page = report([run], tmp_path / "new" / "report")
    assert (png.name, page.name) == ("report.png", "report.html")
    (embedded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page.read_text(encoding="utf-8"))
    assert base64.b64decode(embedded) == png.read_bytes()
    assert png.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.png"]


def test_a_new_report_replaces_the_previous_report(run, tmp_path):
    _, page = report([run], tmp_path)
    assert "5.4321" not in page.read_text(encoding="utf-8")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "tokens": 18, "seconds": 2.0, "loss": 5.4321}\n')
    report([run], tmp_path)
    assert "5.4321" in page.read_text(encoding="utf-8")


def test_no_files_are_written_with_an_invalid_run(run, tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        report([run, tmp_path / "nowhere"], tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_an_output_folder_that_cannot_be_written_is_an_error_of_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written") as raised:
        report([run], tmp_path / "file")
    assert "\n" not in str(raised.value)


def test_a_long_run_is_plotted_to_a_small_file(tmp_path):
    lines = training_lines(30_000)
    folder = write_run(tmp_path / "long", [*lines, *evaluation_lines(lines, 2000)])
    png, _ = report([folder], tmp_path)
    assert png.stat().st_size < 1_500_000
