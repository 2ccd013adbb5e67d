"""Time and memory on a large file: heavy, so among the slow tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.needs_data
def test_a_hundred_thousand_rows_take_less_than_a_minute_and_a_gigabyte(shared_data, tmp_path):
    """On two quiet cores; twice the time is allowed for others at work."""
    words, out = shared_data / "tiny_shakespeare.txt", tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench.data_check", "--words", str(words), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    figures = json.loads(out.read_text())
    assert figures["cpu_seconds"] < 120
    assert figures["peak_mebibytes"] < 1000
    assert figures["found"]["near_duplicates"] > 1500
