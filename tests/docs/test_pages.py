"""The pages of docs/: generated from the code, links that lead somewhere, blocks that mean what they say."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from topcoat.cli.main import run
from topcoat.cli.verbs import GROUPS, VERBS
from topcoat.demo.tickets import tickets
from topcoat.model.tiny import save_tiny
from topcoat.recipe.load import recipe_from_dict
from topcoat.recipe.schema import Recipe

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name not in ("reference", "decisions"))


def generator():
    spec = importlib.util.spec_from_file_location("gen_reference", DOCS / "gen_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    docs = tmp_path_factory.mktemp("docs")
    generator().main(docs)
    return docs


def settings_types(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The type and every settings type inside it."""

    def inside(annotation):
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from settings_types(annotation)
        for argument in get_args(annotation):
            yield from inside(argument)

    yield model
    for field in model.model_fields.values():
        yield from inside(field.annotation)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors mkdocs gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def test_every_field_of_every_settings_type_is_on_the_reference_page(written):
    page = " ".join((written / "reference" / "settings.md").read_text(encoding="utf-8").split())
    for model in settings_types(Recipe):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no prose under it"
            row = (
                re.escape(f"| `{name}` | ")
                + r"[^|]*\| [^|]*\| "
                + re.escape(" ".join(field.description.split()).replace("|", "&#124;"))
            )
            assert re.search(row, page), f"{model.__name__}.{name}"


def test_types_limits_and_defaults_are_in_words(written):
    page = (written / "reference" / "settings.md").read_text(encoding="utf-8")
    for row in (
        "| `r` | a whole number, 1 or more | `16` |",
        '| `target_modules` | `all-linear` or a list of: text | `"all-linear"` |',
        "| `validation` | text or a number, above 0, below 1 or `null` | `0.1` |",
        "| `quantization` | see below or `null` | `null` |",
        "| `train` | text | required |",
        "## `model.quantization` with `format: nf4`",
        "## `adapter` with `method: lora`",
    ):
        assert row in page, row
    assert "batch_size.per_device" not in page
    assert "`per_device_train_batch_size`" in page


def test_every_table_row_has_four_or_two_cells(written):
    page = (written / "reference" / "settings.md").read_text(encoding="utf-8")
    for line in page.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (3, 5), line


def test_the_list_of_decisions_names_each_by_its_title(tmp_path):
    (tmp_path / "decisions").mkdir()
    (tmp_path / "decisions" / "0002-b.md").write_text("# Second thing\n\ntext", encoding="utf-8")
    (tmp_path / "decisions" / "0001-a.md").write_text("# First thing\n", encoding="utf-8")
    generator().main(tmp_path)
    index = (tmp_path / "decisions" / "index.md").read_text(encoding="utf-8")
    assert index.index("- [First thing](0001-a.md)") < index.index("- [Second thing](0002-b.md)")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page, written):
    for target in re.findall(r"\]\(([^)]*)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        if found.parent.name in ("reference", "decisions"):
            found = written / found.relative_to(DOCS)
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "yaml")], ids=lambda path: path.name)
def test_every_recipe_on_a_page_is_a_recipe(page):
    """Each block is laid over the smallest recipe, and read as strictly as a file."""
    for block in blocks(page, "yaml"):
        values = YAML(typ="safe").load(block)
        smallest = {"model": {"path": "m"}, "data": {"train": "t.jsonl"}, "output": "runs/x"}
        recipe_from_dict(smallest | values, check_files=False)


def test_commands_use_verbs_and_options_that_exist(written):
    page_of_commands = (written / "reference" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `topcoat ([\w ]+)`\n(.*?)(?=^## |\Z)", page_of_commands, re.DOTALL | re.MULTILINE))
    assert {name.split()[0] for name in sections} == set(VERBS)
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.splitlines():
                assert line.startswith("$ "), f"{page.name}: {line}"
                program, *words = line.removeprefix("$ ").split()
                if program == "topcoat":
                    options = [word for word in words if word.startswith("-")]
                    section = sections[" ".join(words[:2]) if words[0] in GROUPS else words[0]]
                    assert not [option for option in options if option not in section], line
                else:
                    assert program in ("pip", "make"), line


def test_the_reference_page_and_the_help_take_the_same(written, capsys):
    page = (written / "reference" / "cli.md").read_text(encoding="utf-8")
    assert "topcoat train RECIPE [key=value ...] [OPTIONS]" in page
    assert run(["doctor", "--help"]) == 0
    assert "--json" in capsys.readouterr().out


AFTER_COMMANDS = {"classify.md"}
"""Pages whose Python reads what their commands wrote; test_objective_pages.py runs both."""


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python") and p.name not in AFTER_COMMANDS], ids=lambda path: path.name
)
def test_python_blocks_run_from_top_to_bottom(page, tmp_path):
    save_tiny(tmp_path / "model")
    rows = tickets(train=20, held_out=0).train
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "page.py").write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "page.py"], cwd=tmp_path, env=environment, check=True)
    runs = [run for run in (tmp_path / "runs").glob("*") if run.is_dir()]
    assert all((run / "report.html").exists() for run in runs)
    assert runs or "topcoat.train(" not in "".join(blocks(page, "python"))
