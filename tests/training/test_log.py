"""The log of a run: what a killed run wrote after its last checkpoint is written again."""

import json

import pytest

from jcl.training.log import Log

pytestmark = pytest.mark.quick


def test_lines_are_in_memory_and_in_the_file(tmp_path):
    log = Log(tmp_path, 0)
    for step in (1, 2):
        log.write({"step": step, "loss": 0.5})
    assert log.lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}]
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == log.lines


def test_a_resumed_run_keeps_the_lines_up_to_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    log = Log(tmp_path, 2)
    assert log.lines == [{"step": 1}, {"step": 2}]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_without_a_folder_lines_are_in_memory_alone():
    log = Log(None, 0)
    log.write({"step": 1})
    assert log.lines == [{"step": 1}]


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    log = Log(tmp_path, 0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"^can't write .*metrics\.jsonl: Is a directory$"):
        log.write({"step": 1})
