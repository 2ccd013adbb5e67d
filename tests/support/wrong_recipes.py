"""Recipes with one value of choice, and what reading a wrong one says."""

import pytest

from topcoat.errors import TopcoatError
from topcoat.recipe.fields import sections
from topcoat.recipe.load import recipe_from_dict


def with_value(path: tuple[str, ...], value: object) -> dict:
    """The shortest recipe as sections, with `value` at `path` and the tag its section needs."""
    tree: dict = {"model": {"path": "x/y"}, "data": {"train": "rows.jsonl"}, "output": "runs/x"}
    into = tree
    for part in path[:-1]:
        into = into.setdefault(part, {})
    section = sections().get(path[:-1])
    if section is not None and section.tag is not None:
        kinds = [kind for kind in section.variants if path[-1] in kind.model_fields]
        usual = section.variant(section.default_tag or "nf4")
        kind = kinds[0] if kinds and usual not in kinds else usual
        into[section.tag] = kind.model_fields[section.tag].default
    into[path[-1]] = value
    if path[-1] in ("encoder_num_layers", "encoder_dropout"):
        into["encoder_reparameterization_type"] = "LSTM"  # whose settings these are
    return tree


def problems(values: dict) -> list[str]:
    with pytest.raises(TopcoatError) as caught:
        recipe_from_dict(values, check_files=False)
    return [str(problem) for problem in caught.value.problems]
