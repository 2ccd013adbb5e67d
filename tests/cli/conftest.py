"""Running the command line in this process."""

import json
from collections.abc import Callable
from typing import NamedTuple

import pytest

from topcoat.cli.main import run


class Done(NamedTuple):
    """What a command line left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out.strip().splitlines()[-1])


@pytest.fixture
def topcoat(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """topcoat("doctor", "--json"): the exit code and the text on stdout and stderr."""

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = run(arguments)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call
