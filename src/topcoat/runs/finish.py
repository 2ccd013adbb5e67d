"""After the last step: the best checkpoint back in place, the adapter saved and read back, scores, card and report.

The adapter is safe on disk before anything that is only nice to have is tried (pitfall P39).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from topcoat.adapters.attach import Adapters
from topcoat.adapters.files import save_adapter
from topcoat.adapters.settings import FullConfig
from topcoat.data.render import Renderer
from topcoat.exporting.companions import write_companions
from topcoat.exporting.labels import write_head_config
from topcoat.exporting.merge import publish_model
from topcoat.files import discard, publish_directory, write_file
from topcoat.model.load import Base
from topcoat.report.card import model_card
from topcoat.report.page import write_report
from topcoat.runs.folder import RunFolder, read_json, write_json
from topcoat.runs.listener import Listener
from topcoat.runs.scoring import Scores
from topcoat.runs.session import Session
from topcoat.runs.timing import measured
from topcoat.training.loop import Progress
from topcoat.training.metrics import read_metrics


def keep_best(session: Session, progress: Progress, listener: Listener) -> None:
    """Put the parameters of the lowest validation loss back, where that was not the last evaluation."""
    if progress.best_step is None or progress.best_step == progress.step:
        return
    best = session.checkpoints.best()
    if best is None or best.step != progress.best_step:
        listener.say(
            f"the checkpoint of step {progress.best_step} cannot be read; the adapter is that of the last step"
        )
        return
    best.read("adapter", session.adapters.state())
    listener.say(f"the adapter is that of step {best.step}, the lowest validation loss ({progress.best_loss:.4f})")


def finish(session: Session, before: Scores, progress: Progress, listener: Listener) -> Scores:
    """Save what was trained, score it, and write the files people read. Returns the adapter's scores."""
    folder, recipe, base = session.folder, session.recipe, session.base
    final = session.patiently(lambda: save_trained(folder, base, session.adapters, listener.say))
    listener.say(f"saved {final}")
    tuned = session.scorer.scores(listener, "asking the adapter")
    questions = session.scorer.questions
    results = {
        "rows": len(questions),
        "base": before.as_json(),
        "adapter": tuned.as_json(),
        "train_seconds": progress.elapsed_s,
        "labels": list(base.head.names) if base.head is not None else None,
        "steps": progress.step,
        "best_step": progress.best_step,
        "skipped_steps": progress.skipped_steps,
        "ended": progress.ended,
        **{made: read_json(folder.results).get(made) for made in ("merge", "exports")},  # of an earlier end of this run
        "samples": [
            {"prompt": q.prompt, "reference": q.reference, "base": b, "adapter": a}
            for q, b, a in zip(questions, before.answers, tuned.answers, strict=True)
        ],
        "data": session.data.report.to_dict(),
    }
    write_json(folder.results, results)
    found = measured(base, read_metrics(folder.metrics), progress.elapsed_s, progress.micro_batch_tokens)
    write_json(folder.plan, session.plan.as_json() | found)
    card = model_card(
        {
            "name": folder.path.resolve().name,
            "base_model": recipe.model.path,
            "license": base.source.license.name,
            "method": recipe.adapter.method,
            "recipe": recipe.model_dump(mode="json"),
            "results": results,
            "receipt": read_json(folder.receipt),
        }
    )
    write_file(final / "README.md", card)
    write_report(folder.path)
    return tuned


def save_trained(folder: RunFolder, base: Base, adapters: Adapters, say: Callable[[str], None]) -> Path:
    """The adapter as a PEFT directory, or the whole model after full fine-tuning; replaces one of an earlier try."""
    final = folder.trained(adapters.config)
    prompts = read_json(folder.probe)["prompts"]
    aside = final.with_name(f".{final.name}.replaced")
    if final.exists():  # a run that is resumed after its end: what it delivered stays until the new one is there
        if aside.exists():
            discard(aside)
        final.rename(aside)
    if isinstance(adapters.config, FullConfig):
        publish_model(base, adapters, final, prompts, f"the model in {final}", say)  # against the float32 masters
    else:
        with publish_directory(final) as temporary:
            save_adapter(adapters, temporary, base.settings.path, base.identity.model_dump())
            if base.head is not None:
                write_head_config(base, temporary)
            template = Renderer(base.tokenizer).template
            write_companions(base.source, base.tokenizer, temporary, template, generation=False)
    if aside.exists():
        discard(aside)
    return final
