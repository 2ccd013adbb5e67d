"""topcoat schema: the JSON Schema of a recipe, which editors complete and check YAML with."""

from __future__ import annotations

import json
from typing import Any


def command() -> None:
    """Print the JSON Schema of a recipe (draft 2020-12).

    Editors with a YAML language server complete recipes whose first line is `# yaml-language-server: $schema=FILE`.
    """
    print(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))


def recipe_schema() -> dict[str, Any]:
    """The schema, every setting described by the prose under its field."""
    from topcoat.recipe.schema import Recipe

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
