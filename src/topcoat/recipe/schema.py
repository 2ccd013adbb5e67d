"""Recipe: one run as one type, made of the parts' own settings. Importing it does not import torch."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from topcoat.adapters.settings import Adapter, LoraConfig
from topcoat.config import Config
from topcoat.data.settings import DataSettings
from topcoat.evaluation.settings import EvaluateSettings
from topcoat.model.settings import ModelSettings
from topcoat.recipe.settings import GuidanceSettings
from topcoat.training.settings import TrainSettings


class Recipe(Config):
    """Everything that decides a run: the same recipe on the same machine gives the same adapter, byte for byte."""

    model: ModelSettings
    """The base model."""
    adapter: Adapter = LoraConfig()
    """What trains."""
    data: DataSettings
    """What it trains on."""
    train: TrainSettings = TrainSettings()
    """How it trains."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """How it is measured."""
    guidance: GuidanceSettings = GuidanceSettings()
    """What is said of doubtful settings."""
    output: str = Field(min_length=1)
    """Folder of the run; made if it is not there, refused if it holds another run."""
    seed: int = Field(42, ge=0, lt=2**31)
    """Start of the adapter, order of the examples, the validation split and dropout all follow from it."""

    @model_validator(mode="before")
    @classmethod
    def _plain_text_is_cut_into_windows(cls, values: Any) -> Any:
        """The default of data.overlong where plain text is learned: a long document is nothing wrong there."""
        train, data = (values.get(key) for key in ("train", "data")) if isinstance(values, dict) else (None, None)
        if not (isinstance(train, dict) and isinstance(data, dict)) or train.get("objective") != "completion":
            return values
        return {**values, "data": {"overlong": "split", **data}}
