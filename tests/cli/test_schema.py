"""topcoat schema: valid JSON Schema that says the same as the settings types."""

import json

from topcoat.recipe.fields import leaves, sections


def test_the_schema_describes_every_setting(topcoat):
    done = topcoat("schema")
    assert done.code == 0
    schema = json.loads(done.out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["model", "data", "output"]
    assert set(schema["properties"]) == set(sections()[()].keys)
    known = {key for definition in [schema, *schema["$defs"].values()] for key in definition["properties"]}
    assert {path[-1] for path in leaves()} <= known
    for name, definition in schema["$defs"].items():
        assert definition["additionalProperties"] is False
        assert all("description" in field for field in definition["properties"].values()), name
