"""Length: what max_length cuts and drops, and how full the computed rows are. Needs a recipe, for its tokenizer."""

from __future__ import annotations

from topcoat.data.checks.corpus import Corpus
from topcoat.data.checks.finding import Finding, count
from topcoat.data.labels import LABELLED
from topcoat.data.overlong import way_out
from topcoat.units import show_percent

FULL, FULL_FROM = 0.9, 20  # rows below which the fill says nothing

DONE = {
    "error": "the run stops at them",
    "drop": "they are left out",
    "truncate": "their ends are cut, stop token included",
    "split": "they are cut into several examples",
}


def overlong(corpus: Corpus) -> list[Finding]:
    held, limit = corpus.setting.lengths, corpus.setting.max_length
    if held is None or limit is None:
        return []
    long = {at: size for at, size in zip(held.rows, held.tokens, strict=True) if size > limit}
    stops = corpus.setting.overlong == "error"
    beside = [size for size in corpus.setting.validation_tokens if size > limit] if stops else []
    why = f"with overlong: {corpus.setting.overlong} {DONE[corpus.setting.overlong]}"
    fix = way_out(
        max([*long.values(), *beside], default=0),
        corpus.setting.context_length,
        labelled=corpus.reading.objective in LABELLED,
        counted=len(held.rows) == len(corpus),
    )
    found = []
    if beside:
        what = f"{count(len(beside), 'validation row', 'validation rows')} longer than {limit:,} tokens"
        found.append(Finding(what, why, fix, elsewhere=_held_out(corpus, limit), count=len(beside), stops=True))
    if not long:
        return found
    lost = sum(size - limit for size in long.values()) / max(1, sum(held.tokens))
    seen = f" of {len(held.rows):,} counted" if len(held.rows) < len(corpus) else ""
    what = (
        f"{count(len(long), 'row', 'rows')}{seen} longer than {limit:,} tokens, {show_percent(lost)} of all beyond it"
    )
    shown = {at: f"{size:,} tokens" for at, size in long.items()}
    # what the run cuts or splits it trains: only rows that it would stop at or leave out itself are left out of a copy
    left_out: list[int] | None = None if corpus.setting.overlong in ("error", "drop") else []
    return [Finding(what, why, fix, list(long), shown, drop=left_out, stops=stops), *found]


def _held_out(corpus: Corpus, limit: int) -> list[tuple[str, int, str]]:
    """The validation rows over the limit; none where rows that the template refuses were not counted."""
    held, sizes = corpus.against, corpus.setting.validation_tokens
    if held is None or len(held) != len(sizes):
        return []
    return [(held.file_of(at), held.lines[at], f"{size:,} tokens") for at, size in enumerate(sizes) if size > limit]


def packing(corpus: Corpus) -> list[Finding]:
    fill = corpus.setting.fill
    if fill is None or fill >= FULL or len(corpus) < FULL_FROM:
        return []
    what = f"{show_percent(fill)} of the positions that are computed hold tokens"
    why = "the rest is computed for nothing"
    fix = "raise train.batch_size: the examples of a step share rows"
    return [Finding(what, why, fix if corpus.setting.packing else "set data.packing: true")]
