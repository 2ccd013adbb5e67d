"""What probes found is kept per device, and added to later plans."""

from __future__ import annotations

from topcoat.planning.residuals import NEWEST, Residual, keep_residual, read_residuals, residual_bytes, says


def found(difference: int) -> Residual:
    return Residual("tiny", 1000, 1000 + difference, 0.5, 64)


def test_the_median_of_the_newest_is_added(tmp_path):
    assert residual_bytes(read_residuals("cpu-1", tmp_path)) == 0
    for difference in (500, -20, 40, 10):
        assert keep_residual(found(difference), "cpu-1", tmp_path)
    kept = read_residuals("cpu-1", tmp_path)
    assert [row.bytes for row in kept] == [500, -20, 40, 10]
    assert residual_bytes(kept) == 25
    assert says(kept) == "median of 4 probes on this device"
    assert says(kept[:1]) == "median of one probe on this device"
    assert kept[0].share == 500 / 1500


def test_devices_are_apart_and_old_probes_are_forgotten(tmp_path):
    for difference in range(NEWEST + 3):
        keep_residual(found(difference), "RTX 4090", tmp_path)
    assert [row.bytes for row in read_residuals("RTX 4090", tmp_path)] == list(range(3, NEWEST + 3))
    assert read_residuals("cpu-1", tmp_path) == []


def test_a_file_of_no_use_is_as_none(tmp_path):
    keep_residual(found(1), "cpu-1", tmp_path)
    (file,) = (tmp_path / "calibration").iterdir()
    for text in (
        "",
        "{",
        "[]",
        '{"version": 0, "probes": []}',
        '{"version": 1}',
        '{"version": 1, "probes": [{"x": 1}]}',
    ):
        file.write_text(text)
        assert read_residuals("cpu-1", tmp_path) == []


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    assert not keep_residual(found(1), "cpu-1", tmp_path / "file")
