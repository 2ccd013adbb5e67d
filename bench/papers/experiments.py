"""EXPERIMENTS: every experiment by its name, in the order in which they are worth running."""

from __future__ import annotations

from bench.papers import adalora, formats, four_bit, learning_rate, methods, qalora, ranks, repairs, targets
from bench.papers.protocol import Experiment

_MODULES = (learning_rate, formats, repairs, qalora, ranks, targets, four_bit, adalora, methods)

EXPERIMENTS: dict[str, Experiment] = {module.EXPERIMENT.name: module.EXPERIMENT for module in _MODULES}
