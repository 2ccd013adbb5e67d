"""metrics.jsonl: exact numbers, one line a step, nothing told twice."""

import errno
import json
import math
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topcoat.disk_errors import DiskFull
from topcoat.errors import TopcoatError
from topcoat.training import metrics
from topcoat.training.metrics import MetricsLog, read_metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def bits(number: float) -> bytes:
    return struct.pack("<d", number)


@given(numbers=st.lists(st.floats(allow_nan=False)))
def test_every_float_comes_back_bit_for_bit(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    log = MetricsLog(path)
    log.write({"step": 1, "loss": numbers})
    log.close()
    assert [bits(n) for n in read_metrics(path)[0]["loss"]] == [bits(n) for n in numbers]


def test_a_loss_that_is_no_number_is_still_json_for_everyone(path):
    log = MetricsLog(path)
    log.write({"loss": math.nan, "parts": {"up": math.inf, "down": [-math.inf]}, "note": "a line\nand more"})
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (row,) = read_metrics(path)
    assert math.isnan(row["loss"])
    assert row["parts"] == {"up": math.inf, "down": [-math.inf]}
    assert row["note"] == "a line\nand more"


def test_rows_come_back_in_order_and_a_reopened_log_goes_on(path):
    for step in range(3):
        log = MetricsLog(path)
        log.write({"step": step})
        log.close()
    assert read_metrics(path) == [{"step": 0}, {"step": 1}, {"step": 2}]
    assert path.read_text().splitlines()[0] == '{"step": 0}'


def test_resuming_cuts_the_log_to_the_recorded_length(path):
    log = MetricsLog(path)
    log.write({"step": 0})
    recorded = log.length()
    log.write({"step": 1, "loss": 2.0})
    assert recorded == len('{"step": 0}\n')
    assert log.truncate(recorded) == 0
    log.write({"step": 1, "loss": 3.0})
    assert read_metrics(path) == [{"step": 0}, {"step": 1, "loss": 3.0}]


def test_a_log_shorter_than_recorded_is_not_stretched(path):
    log = MetricsLog(path)
    log.write({"step": 0})
    assert log.truncate(1000) == 1000 - log.length()
    assert path.read_text() == '{"step": 0}\n'


@pytest.mark.parametrize("torn", ['{"step": 1', '{"step": 1}', "\0\0\0"])
def test_a_torn_last_line_is_left_out_and_cut_off_on_opening(path, torn):
    path.parent.mkdir()
    path.write_text('{"step": 0}\n' + torn)
    assert read_metrics(path) == [{"step": 0}]
    log = MetricsLog(path)
    log.write({"step": 1})
    assert read_metrics(path) == [{"step": 0}, {"step": 1}]


def test_a_broken_line_in_the_middle_is_named(path):
    path.parent.mkdir()
    path.write_text('{"step": 0}\n[1]\n{"step": 2}\n')
    with pytest.raises(TopcoatError) as caught:
        read_metrics(path)
    assert "line 2 is not a JSON object: '[1]'" in str(caught.value)
    assert f"{path} line 2" in str(caught.value)


def test_a_log_that_is_not_there_is_named(path):
    with pytest.raises(TopcoatError, match=r"cannot read metrics\.jsonl: No such file"):
        read_metrics(path)


def test_a_full_disk_leaves_whole_lines_and_the_write_can_be_repeated(path, monkeypatch):
    log = MetricsLog(path)
    log.write({"step": 0})
    real, calls = os.pwrite, []

    def full(descriptor, data, offset):
        calls.append(offset)
        if len(calls) == 1:
            return real(descriptor, bytes(data[:4]), offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(metrics.os, "pwrite", full)
        with pytest.raises(DiskFull, match=r"cannot write metrics\.jsonl: no space is left"):
            log.write({"step": 1})
    assert path.read_text() == '{"step": 0}\n'
    log.write({"step": 1})
    assert read_metrics(path) == [{"step": 0}, {"step": 1}]


def test_the_length_is_on_the_disk_before_it_is_told(path, monkeypatch):
    log = MetricsLog(path)

    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(metrics.os, "fsync", broken)
    with pytest.raises(DiskFull, match="input/output error"):
        log.length()


def test_a_log_in_a_place_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(TopcoatError, match="a part of the path is a file"):
        MetricsLog(tmp_path / "run" / "metrics.jsonl")


def test_a_value_json_cannot_hold_is_not_written(path):
    log = MetricsLog(path)
    with pytest.raises(TypeError):
        log.write({"loss": object()})
    assert path.read_bytes() == b""
