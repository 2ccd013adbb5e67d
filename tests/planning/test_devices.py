"""Devices by the names people and drivers give them, and amounts of memory as people write them."""

from __future__ import annotations

import pytest

from topcoat.errors import TopcoatError
from topcoat.planning.devices import DEVICES, GIB, device_in, find_device, parse_bytes


def test_names_are_unique_and_every_figure_has_a_source():
    assert len({device.name for device in DEVICES}) == len(DEVICES)
    for device in DEVICES:
        assert device.source.startswith("https://")
        assert device.peak_flops_fp32 <= device.peak_flops
        assert 0.5 < device.use_flops <= 1
        assert 0.5 < device.use_bandwidth <= 1
        assert 8 * GIB < device.memory_bytes < 300 * GIB


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4060 Ti", "rtx4060ti"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla T4", "t4"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"),
        ("Tesla V100-SXM2-32GB", "v100"),
    ],
)
def test_a_drivers_description_names_a_device(said, name):
    found = device_in(said)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "said",
    [
        "Quadro K620",
        "NVIDIA GeForce RTX 4090 Laptop GPU",  # 16 GB, not the 24 of the card
        "NVIDIA GeForce RTX 4070 Ti SUPER",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA L40",  # twice an L4's memory
        "NVIDIA T400 4GB",  # no T4
        "NVIDIA RTX A1000",  # no A100
        "NVIDIA H100 NVL",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "Tesla V100-SXM2-16GB",
        "",
    ],
)
def test_a_device_that_is_not_in_the_table_is_none_however_near_its_name(said):
    assert device_in(said) is None


def test_what_servers_cards_give_is_less_than_their_data_sheets_say():
    """Of what the driver reports (modal-client's pull request 2797, MiB), CUDA keeps some hundred MiB."""
    reported = {
        "h100": 81559,
        "a100-80": 81920,
        "a100-40": 40960,
        "a10": 23028,
        "l40s": 46068,
        "l4": 23034,
        "t4": 15360,
    }
    for name, mib in reported.items():
        assert 0 < mib * 2**20 - find_device(name).memory_bytes < 2**30


@pytest.mark.parametrize("typed", ["rtx4090", "RTX 4090", "RTX-4090", "GeForce RTX 4090"])
def test_a_device_is_found_however_it_is_spelled(typed):
    assert find_device(typed).name == "rtx4090"


def test_an_unknown_device_gets_the_nearest_names():
    with pytest.raises(TopcoatError) as caught:
        find_device("rtx5000")
    assert "'rtx5000' is no device that is known" in str(caught.value)
    assert "did you mean rtx5090 or rtx5080" in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("a100", "did you mean a100-40 or a100-80?"),
        ("4090", "did you mean rtx4090?"),
        ("cuda:0", "auto is this machine's own"),
        ("x" * 5000, "'" + "x" * 60 + "' is no device"),
    ],
)
def test_a_name_that_is_near_is_completed(typed, near):
    with pytest.raises(TopcoatError) as caught:
        find_device(typed)
    assert near in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"), [("6GiB", 6 * 2**30), ("24 GB", 24 * 10**9), ("1.5gib", 3 * 2**29), ("800MB", 8 * 10**8)]
)
def test_amounts_of_memory(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("6", "'6' has no unit\n  where: --budget\n  fix:   write 6GiB, 6GB or 6MiB"),
        ("6 parsecs", "'parsecs' is no unit of memory"),
        ("much", "'much' is no amount of memory"),
        ("-6GiB", "'-6GiB' is no amount of memory"),
        ("0GiB", "a budget of nothing fits nothing"),
        ("0.0000001KiB", "a budget of nothing fits nothing"),
        ("", "'' is no amount of memory"),
    ],
)
def test_what_is_no_amount_is_refused(text, said):
    with pytest.raises(TopcoatError) as caught:
        parse_bytes(text)
    assert said in str(caught.value)
