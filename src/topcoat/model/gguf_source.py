"""placeholder"""

from pathlib import Path


class GgufSource:
    def __init__(self, path: Path) -> None:
        raise NotImplementedError
