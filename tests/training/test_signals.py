"""The first signal asks, the second ends, and afterwards everything is as it was."""

import hashlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from topcoat.errors import Interrupted, TopcoatError
from topcoat.training.signals import Stop, StopSignals

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def in_child(work, stderr: Path) -> int:
    """Run `work` in a forked child whose stderr is a file; returns its pid."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
        work()
        os._exit(0)
    return child


def wait_for(condition, seconds=10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


@pytest.mark.parametrize("number", EXIT_CODES)
def test_the_first_signal_is_noted_with_its_exit_code(number, capfd):
    with StopSignals() as signals:
        signals.check()
        assert signals.stop is None
        signal.raise_signal(number)
        assert signals.stop == Stop(signal.Signals(number).name, EXIT_CODES[number])
        with pytest.raises(Interrupted, match=f"{signal.Signals(number).name}: stopped") as caught:
            signals.check()
    assert caught.value.exit_code == EXIT_CODES[number]
    assert Interrupted("x").exit_code == 130  # the class is not touched
    assert f"{signal.Signals(number).name}: saving at the end of this step" in capfd.readouterr().err


def test_afterwards_signals_do_what_they_did(capfd):
    def mine(number, frame):
        raise AssertionError

    interrupt = signal.getsignal(signal.SIGINT)  # a shell's background job starts with it ignored
    before = signal.signal(signal.SIGTERM, mine)
    pipe = os.pipe()
    os.set_blocking(pipe[1], False)
    wakeup = signal.set_wakeup_fd(pipe[1])
    try:
        with StopSignals():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is interrupt
        assert signal.set_wakeup_fd(pipe[1]) == pipe[1]
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "second signal"])


def test_an_ignored_sigint_is_caught_inside_and_ignored_again_afterwards(capfd):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.stop == Stop("SIGINT", 130)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("second", EXIT_CODES)
def test_the_second_signal_ends_at_once_even_inside_one_long_call(tmp_path, second):
    stderr = tmp_path / "stderr"

    def work():
        with StopSignals() as signals:
            while signals.stop is None:
                time.sleep(0.001)
            os.write(2, b"computing\n")
            hashlib.pbkdf2_hmac("sha256", b"x", b"y", 200_000_000)  # minutes in C; no Python handler runs in it

    child = in_child(work, stderr)
    wait_for(stderr.exists)
    time.sleep(0.1)
    os.kill(child, signal.SIGTERM)
    wait_for(lambda: "computing" in stderr.read_text())
    time.sleep(0.1)
    start = time.monotonic()
    os.kill(child, second)
    killer = threading.Timer(20, os.kill, (child, signal.SIGKILL))
    killer.start()
    status = os.waitpid(child, 0)[1]
    killer.cancel()
    assert time.monotonic() - start < 5
    assert os.waitstatus_to_exitcode(status) == EXIT_CODES[second]
    assert f"{signal.Signals(second).name} again: leaving now" in stderr.read_text()


def test_a_forked_worker_dies_of_the_signal_and_the_run_hears_nothing(capfd):
    with StopSignals() as signals:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.05)
        os.kill(child, signal.SIGTERM)
        status = os.waitpid(child, 0)[1]
        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
        assert signals.stop is None


def test_outside_the_main_thread_it_says_so():
    caught = []

    def work():
        try:
            StopSignals().__enter__()
        except TopcoatError as error:
            caught.append(str(error))

    thread = threading.Thread(target=work, name="worker 7")
    thread.start()
    thread.join()
    assert "signals can only be caught in the main thread" in caught[0]
    assert "worker 7" in caught[0]


def test_a_closed_stderr_does_not_hide_the_stop(tmp_path):
    def work():
        os.close(2)
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGTERM)
            os._exit(7 if signals.stop else 8)

    assert os.waitstatus_to_exitcode(os.waitpid(in_child(work, tmp_path / "stderr"), 0)[1]) == 7
