"""report.html: stands alone, escapes what it shows, tolerates what is missing, and says the run's figures."""

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from topcoat.errors import TopcoatError
from topcoat.report.curves import MOST_POINTS, loss_curves, points, smooth, thin
from topcoat.report.page import write_report
from topcoat.training.metrics import MetricsLog

FILES = ("recipe.yaml", "receipt.json", "plan.json", "metrics.jsonl", "samples.jsonl", "results.json")
VOID = {"meta", "br", "path", "use"}
STEPS = 100


PROMPT = "hi, where is my blue kettle? order 48213. no rush"
REFERENCE = '{"intent":"delivery_late","product":"kettle","urgency":"low","order":"48213"}'
WRONG = "I'm sorry to hear that. <script>alert(1)</script> Could you give me your order number?"
RESULTS = {
    "rows": 120,
    "base": {"perplexity": 21.31, "exact_match": 0.0},
    "adapter": {"perplexity": 1.0431, "exact_match": 113 / 120},
    "train_seconds": 260.0,
    "merge": {"path": "merged", "largest_logit_difference": 0.0312, "prompts_replayed": 8, "same_answers": True},
    "samples": [
        {"prompt": PROMPT, "reference": REFERENCE, "base": WRONG, "adapter": REFERENCE},
        {
            "prompt": "THE CAMPING TENT I PAID FOR HAS NOT BEEN DELIVERED YET.",
            "reference": REFERENCE.replace("kettle", "tent"),
            "base": "",
            "adapter": REFERENCE.replace("kettle", "tent").replace("low", "high"),
        },
    ],
    "data": {"format": "messages", "train_examples": 1600, "validation_examples": 480, "share_trained": 0.317},
}
BILL = {
    "base weights (nf4)": 61_200_000,
    "embedding and norms": 56_700_000,
    "adapter": 19_537_920,
    "gradients": 19_537_920,
    "optimizer states": 39_075_840,
    "activations": 402_000_000,
    "loss": 25_100_000,
}
NOTES = {"activations": "2,048 tokens at once", "optimizer states": "AdamW, two moments in fp32"}
PLAN = {
    "lines": [{"name": k, "bytes": v, "note": NOTES.get(k)} for k, v in BILL.items()],
    "peak_bytes": sum(BILL.values()),
    "measured_peak_bytes": 641_000_000,
}
RECEIPT = {
    "run_id": "3f0c5d",
    "base": {"sha256": "9d" * 32, "architecture": "LlamaForCausalLM"},
    "versions": {"topcoat": "0.1.0", "torch": "2.13.0"},
}


def metrics():
    """The lines of a run of STEPS steps."""
    rng = random.Random(0)
    lines = [{"step": 0, "validation_loss": 3.05}]
    for step in range(1, STEPS + 1):
        loss = 2.9 * math.exp(-step / 7) + 0.05 + 0.06 * rng.random() * math.exp(-step / 60)
        lines.append(
            {
                "step": step,
                "loss": loss,
                "grad_norm": 0.3 + 2 * math.exp(-step / 10) + 0.2 * rng.random(),
                "learning_rate": 1e-3 * min(1, step / 4) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS)),
                "tokens": 1264,
                "target_tokens": 400,
                "tokens_per_s": 480 + 40 * rng.random(),
                "memory_bytes": 913_000_000,
                "elapsed_s": 2.6 * step,
            }
        )
        if step % 25 == 0:
            lines.append({"step": step, "validation_loss": 2.9 * math.exp(-step / 7) + 0.09})
    return lines


def fill(folder: Path) -> Path:
    """A run folder with every file a finished run leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("model:\n  path: ./SmolLM2-135M.gguf\nseed: 42\n", encoding="utf-8")
    write_lines(folder / "metrics.jsonl", metrics())
    answers = {0: WRONG, 25: REFERENCE.replace("low", "normal"), 50: REFERENCE, 100: REFERENCE}
    write_lines(
        folder / "samples.jsonl",
        [{"step": s, "prompt": PROMPT, "reference": REFERENCE, "answer": a} for s, a in answers.items()],
    )
    for name, values in (("results", RESULTS), ("plan", PLAN), ("receipt", RECEIPT)):
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def page_of(folder):
    return write_report(folder).read_text(encoding="utf-8")


def text_of(page):
    """The page's words, without tags, style and drawings."""
    page = re.sub(r"<(style|svg).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


class Nesting(HTMLParser):
    """Fails on a tag that is closed out of turn; keeps every tag's name and attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def parse(page):
    parser = Nesting()
    parser.feed(page)
    assert parser.open == []
    return parser.seen


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return page_of(fill(tmp_path_factory.mktemp("runs") / "tickets"))


def test_the_page_names_no_other_resource(page):
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    for tag, attributes in parse(page):
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"url\((?!#)", page)


def test_two_drawings_share_no_id(page):
    ids = [attributes["id"] for _, attributes in parse(page) if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)


def test_what_a_sample_holds_is_text_and_not_html(page):
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2  # the sample, and its answer at step 0


@pytest.mark.parametrize("name", ["recipe.yaml", "receipt.json", "plan.json", "samples.jsonl", "results.json"])
def test_html_in_any_file_is_escaped(tmp_path, name):
    folder, attack = fill(tmp_path / "run"), '"><script>x</script>'
    path = folder / name
    if name == "recipe.yaml":
        path.write_text(attack, encoding="utf-8")
    elif name == "samples.jsonl":
        write_lines(path, [{"step": 1, "prompt": attack, "reference": attack, "answer": attack}])
    else:
        values = json.loads(path.read_text(encoding="utf-8"))
        if name == "receipt.json":
            values[attack] = {attack: attack}
        elif name == "plan.json":
            values["lines"].append({"name": attack, "bytes": 1, "note": attack})
        else:
            values["data"][attack] = attack
            values["samples"] = [{"prompt": attack, "reference": attack, "base": attack, "adapter": attack}]
        path.write_text(json.dumps(values), encoding="utf-8")
    page = page_of(folder)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    parse(page)


def test_the_run_folder_s_name_is_escaped(tmp_path):
    page = page_of(fill(tmp_path / "<b>run"))
    assert "<b>run" not in page
    assert "&lt;b&gt;run" in page


def test_the_figures_of_the_run_are_on_the_page(page):
    text = text_of(page)
    for figure in (
        "94.2 %",
        "113 of 120 rows; 95 % interval 88.4 to 97.1 %",
        "0 of 120 rows; 95 % interval 0.0 to 3.1 %",
        "21.31",
        "1.043",
        "100 steps",
        "4m 20s",
        "126.4k",
        "870.7 MiB",
        "predicted peak 594.3 MiB",
        "measured peak +2.9 % against the prediction 611.3 MiB",
        "32 %",
        "train examples 1,600",
        "480 rows",
        "prompts replayed 8",
        "same answers yes",
        "9d9d9d",
        "LlamaForCausalLM",
        "path: ./SmolLM2-135M.gguf",
    ):
        assert figure in text, figure
    assert "The two 95 % intervals are apart." in text


def test_an_answer_is_marked_by_whether_it_equals_the_reference(page):
    text = text_of(page)
    assert text.count("adapter ✓ equal") == 1
    assert text.count("adapter ✗ differs") == 1
    assert text.count("base ✗ differs") == 2


def test_of_many_samples_the_wrong_answers_are_shown(tmp_path):
    samples = [{"prompt": f"prompt {n}", "reference": "r", "base": "b", "adapter": "r"} for n in range(200)]
    for n in (3, 150, 190):
        samples[n]["adapter"] = f"wrong {n}"
    (tmp_path / "results.json").write_text(json.dumps({"rows": 200, "samples": samples}), encoding="utf-8")
    text = text_of(page_of(tmp_path))
    assert text.count("prompt ") == 5 + 2
    assert "The adapter's other answers that differ (2)" in text
    assert text.index("wrong 3") < text.index("The adapter's other") < text.index("wrong 150") < text.index("wrong 190")


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_leaves_out_its_part_only(tmp_path, missing):
    folder = fill(tmp_path / "run")
    (folder / missing).unlink()
    page = page_of(folder)
    parse(page)
    parts = {
        "recipe.yaml": "<h2>Recipe</h2>",
        "receipt.json": "<h2>Identity and versions</h2>",
        "plan.json": "The memory bill",
        "metrics.jsonl": "<h2>Loss</h2>",
        "samples.jsonl": "How the answers changed",
        "results.json": "<h2>Scores on held-out rows</h2>",
    }
    for name, part in parts.items():
        assert (part in page) == (name != missing), name
    assert ("This run has no results yet" in page) == (missing == "results.json")


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
    page = page_of(tmp_path)
    parse(page)
    assert "This run has no results yet" in page


def test_figures_that_were_not_measured_are_left_out(tmp_path):
    results = {"rows": 20, "base": {"perplexity": 8.0}, "adapter": {"perplexity": 4.0}, "merge": None}
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    text = text_of(page_of(tmp_path))
    assert "Perplexity" in text
    assert "20 rows" not in text  # `rows` counts the questions of exact match, not the rows of the perplexity
    assert "Exact match" not in text
    assert "Merge" not in text


def test_a_torn_last_line_is_left_out(tmp_path):
    folder = fill(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 101, "lo')
    assert "100 steps" in page_of(folder)


def test_a_loss_that_is_not_a_number_is_told_and_not_drawn(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1, "loss": 2.0})
    log.write({"step": 2, "loss": math.nan})
    log.close()
    page = page_of(tmp_path)
    assert "The loss was not a finite number in 1 steps, first in step 2." in page
    assert "nan" not in page.lower().split("</style>")[1]


@pytest.mark.parametrize("name", ["plan.json", "metrics.jsonl"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    (fill(tmp_path / "run") / name).write_text('{"lines": [\n{}\n', encoding="utf-8")
    with pytest.raises(TopcoatError, match="JSON") as caught:
        write_report(tmp_path / "run")
    assert name in str(caught.value)


def test_a_perplexity_beyond_numbers_is_shown_as_it_is(tmp_path):
    results = {"rows": 2, "base": {"perplexity": "Infinity"}, "adapter": {"perplexity": 4.0}}
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    assert "Infinity" in text_of(page_of(tmp_path))


def test_both_colour_schemes_and_narrow_pages_are_served(page):
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert "currentColor" in page
    assert "#00000" not in page  # no stand-in colour is left


def test_the_same_run_gives_the_same_page(tmp_path):
    folder = fill(tmp_path / "run")
    assert page_of(folder) == page_of(folder)


def test_a_step_that_comes_twice_counts_once():
    metrics = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "x": 1}]
    assert points(metrics, "loss") == [(1, 3.0), (2, 1.0)]


def test_a_long_curve_is_thinned_to_means():
    curve = [(float(i), float(i)) for i in range(10_000)]
    drawn = thin(curve)
    assert len(drawn) == MOST_POINTS
    assert drawn[0] == (5.5, 5.5) or drawn[0][0] < 7
    assert sum(y for _, y in drawn) / len(drawn) == pytest.approx(4999.5, rel=1e-3)
    assert len(loss_curves(curve, [], name="x", inches=(4, 3))) < 60_000


def labels_left(svg):
    """Texts of the vertical axis: those that end at their place."""
    return [float(text) for text in re.findall(r"text-anchor: end[^>]*>([^<]*)</text>", svg)]


def test_a_loss_that_falls_far_is_drawn_on_a_logarithmic_axis():
    far = [(float(i), 3.0 * 0.9**i) for i in range(60)]
    near = [(float(i), 2.0 - i / 60) for i in range(60)]
    assert min(labels_left(loss_curves(near, [], name="x", inches=(8, 3)))) == 0
    assert 0 < min(labels_left(loss_curves(far, [], name="x", inches=(8, 3)))) < 0.1
    assert labels_left(loss_curves([(1.0, 0.0), (2.0, 3.0)], [], name="x", inches=(8, 3)))  # zero has no logarithm


def test_a_moving_average_starts_at_the_first_value_and_does_not_chase_the_last():
    assert [y for _, y in smooth([(i, 2.5) for i in range(50)], 8)] == pytest.approx([2.5] * 50)
    noisy_end = [(float(i), 1.0) for i in range(9)] + [(9.0, 4.0)]
    averaged = smooth([(-1.0, 7.0), *noisy_end], 2)
    assert averaged[0] == (-1.0, 7.0)
    assert averaged[-1] == (9.0, pytest.approx(2.0))  # (1 + 1 + 4) / 3
