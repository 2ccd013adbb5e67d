"""The picture of the layers, redrawn from the imports: a file imports from its own folder and from layers below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import topcoat.errors

SOURCE = Path(topcoat.errors.__file__).parent
LAYERS = (  # top to bottom; folders that share a line do not import each other, except cli and demo
    {"cli", "demo"},
    {"runs"},
    {"recipe", "report"},
    {"planning", "evaluation", "exporting"},
    {"training"},
    {"data"},
    {"model"},
    {"adapters"},
    {"quant"},
    {"kernels"},
    {"errors", "units", "config", "disk_errors", "files", "run_lock", "json_files"},
)
FILES = sorted(SOURCE.rglob("*.py"))
LIGHT = ["topcoat.recipe.schema", "topcoat.recipe.load", "topcoat.errors", "topcoat.units", "topcoat.config"]


def level(part: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


def imported_parts(file: Path) -> set[str]:
    """The folders (or floor files) of topcoat that `file` imports from, wherever in it the import stands."""
    parts = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} line {node.lineno}: imports are written in full"
            names = [node.module] if node.module != "topcoat" else [f"topcoat.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("topcoat.")}
    return parts


def named(file: Path) -> str:
    return str(file.relative_to(SOURCE))


@pytest.mark.parametrize("file", [file for file in FILES if file.parent != SOURCE], ids=named)
def test_a_file_imports_only_from_its_folder_and_the_layers_below(file: Path) -> None:
    own = file.relative_to(SOURCE).parts[0]
    together = {"cli", "demo"} if own in {"cli", "demo"} else {own}
    above = {part for part in imported_parts(file) - together if level(part) <= level(own)}
    assert not above, f"{named(file)} (layer {own}) imports from {', '.join(sorted(above))}, which is not below it"


@pytest.mark.parametrize("name", sorted(LAYERS[-1]))
def test_the_floor_imports_only_the_floor(name: str) -> None:
    assert imported_parts(SOURCE / f"{name}.py") <= LAYERS[-1]


def test_every_folder_has_its_place_in_the_picture() -> None:
    folders = {entry.name for entry in SOURCE.iterdir() if entry.is_dir() and entry.name != "__pycache__"}
    assert folders == set().union(*LAYERS) - LAYERS[-1]


@pytest.mark.parametrize("file", [f for f in FILES if f.name == "__init__.py" and f.parent != SOURCE], ids=named)
def test_package_files_are_empty(file: Path) -> None:
    assert file.read_text() == ""


def test_settings_and_recipes_are_read_without_torch() -> None:
    settings = [
        ".".join(("topcoat", *file.relative_to(SOURCE).with_suffix("").parts)) for file in SOURCE.glob("*/settings.py")
    ]
    assert len(settings) >= 6
    imports = "; ".join(f"import {name}" for name in [*settings, *LIGHT])
    check = (
        "import sys; heavy = {'torch', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", f"{imports}; {check}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
