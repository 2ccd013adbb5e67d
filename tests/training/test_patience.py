"""A full disk pauses a run; what waiting does not cure, and a stop, end the pause."""

import pytest

from topcoat.disk_errors import DiskFull
from topcoat.errors import TopcoatError
from topcoat.training.patience import save_with_patience


def full(need: int = 5) -> DiskFull:
    return DiskFull("cannot write: full", "run", "free space", need=need, free=1, errno=28)


def test_a_full_disk_pauses_until_there_is_room():
    outcomes = [full(), full(), "saved"]
    told, slept = [], []

    def attempt():
        outcome = outcomes.pop(0)
        if isinstance(outcome, DiskFull):
            raise outcome
        return outcome

    assert save_with_patience(attempt, told.append, lambda: False, sleep=slept.append) == "saved"
    assert len(told) == 2
    assert "cannot write: full" in str(told[0])
    assert "free space. Training is paused and goes on by itself once there is room; Ctrl-C stops it" in str(told[0])
    assert sum(slept) == pytest.approx(1 + 2, abs=0.5)


def test_pauses_grow_to_a_minute():
    slept = []
    outcomes = [True] * 12

    def attempt():
        if outcomes.pop(0) and outcomes:
            raise full()

    save_with_patience(attempt, lambda error: slept.append(0.0), lambda: False, sleep=lambda s: add(slept, s))
    assert slept[:3] == pytest.approx([1, 2, 4], abs=0.3)
    assert max(slept) == pytest.approx(60, abs=0.3)


def add(numbers: list[float], more: float) -> None:
    numbers[-1] += more


def test_a_stop_while_waiting_tries_once_more_and_then_gives_up():
    tries, told = [], []

    def attempt():
        tries.append(1)
        raise full()

    with pytest.raises(DiskFull):
        save_with_patience(attempt, told.append, lambda: True, sleep=lambda s: pytest.fail("slept"))
    assert (len(tries), len(told)) == (2, 1)


def test_what_waiting_does_not_cure_is_raised_at_once():
    def attempt():
        raise TopcoatError("permission is denied")

    with pytest.raises(TopcoatError, match="permission is denied"):
        save_with_patience(attempt, lambda error: pytest.fail("waited"), lambda: False)
