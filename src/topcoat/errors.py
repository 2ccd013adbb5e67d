"""What went wrong, where, and what to type instead.

Every failure a user can cause is a `TopcoatError`. It carries one `Problem` or many, so that all that is wrong with a
recipe or a file is said at once. The command line prints it without a traceback and leaves with `exit_code`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What steers a terminal: control characters but for line breaks and tabs, and marks of direction."""


def _escaped(text: str) -> str:
    return _STEERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the value in hand, where it came from, and what to type instead."""

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            where = self.where.replace("\n", "\\n")
            lines.append(f"  where: {where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return _escaped("\n".join(lines))


class TopcoatError(Exception):
    """Wrong input: a recipe, a file or a value that cannot be used. Exit code 2."""

    exit_code = 2

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(what, where, fix),)
        super().__init__(what)

    @classmethod
    def gather(cls, problems: Sequence[Problem]) -> TopcoatError:
        """One error that says all `problems`.

        Raises:
            ValueError: there is none, so whoever asks has found something wrong and not said what.
        """
        if not problems:
            raise ValueError("an error needs a problem to say")
        error = cls(problems[0].what)
        error.problems = tuple(problems)
        return error

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class Refused(TopcoatError):
    """What was asked can be read but not be done honestly: no fit, no gradient, no proof. Exit code 1."""

    exit_code = 1


class Interrupted(TopcoatError):
    """The user asked to stop (SIGINT, SIGTERM); what was done is saved. Exit code 130, or 143 for SIGTERM."""

    exit_code = 130
