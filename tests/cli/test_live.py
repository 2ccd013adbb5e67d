"""What a run shows while it works: plain lines in a log, a bar on a terminal."""

import io

from rich.console import Console

from topcoat.cli.live import Terminal

FIGURES = {"step": 2, "loss": 1.5, "tokens_per_s": 1234.5, "memory_bytes": 2**20}


def drive(terminal: bool, monkeypatch) -> str:
    now = [0.0]
    monkeypatch.setattr("topcoat.cli.live.time.monotonic", lambda: now[0])
    out = io.StringIO()
    listener = Terminal(Console(file=out, force_terminal=terminal, width=160, highlight=False))
    with listener.progress("training", 10) as advance:
        for step in range(1, 11):
            now[0] += 1.0
            advance(step, {**FIGURES, "step": step})
            if step == 5:
                advance(step, {"step": step, "validation_loss": 1.25})
        listener.say("with [brackets]")
    return out.getvalue()


def test_a_log_gets_a_line_every_few_seconds(monkeypatch):
    assert drive(False, monkeypatch).splitlines() == [
        "training: 10",
        "training 5/10  loss 1.5000  1,234 tokens/s  1.0 MiB  5.0s left",
        "step 5: validation loss 1.2500",
        "training 10/10  loss 1.5000  1,234 tokens/s  1.0 MiB  0.0s left",
        "with [brackets]",
    ]


def test_a_terminal_gets_a_bar_with_the_figures(monkeypatch):
    said = drive(True, monkeypatch)
    assert "10/10" in said
    assert "loss 1.5000  1,234 tokens/s  1.0 MiB" in said
    assert "step 5: validation loss 1.2500" in said
    assert "with [brackets]" in said
