"""The rules of advice.yaml: read, checked, and followed in their order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topcoat.errors import TopcoatError
from topcoat.recipe.advice import DERIVED, FILE, decide, load_advice

ADVICE = load_advice()
STAGES = tuple(stage.name for stage in ADVICE.stages)


def approach(task: str, **facts) -> tuple[str, str]:
    """(answer, the rule that gave it)."""
    made = decide(ADVICE, {"task": frozenset(task.split()), **facts}, ("approach",))
    matched = made.matched("approach")
    return made.answers["approach"], matched[0].id if matched else ""


def method(**facts) -> tuple[str, str]:
    made = decide(ADVICE, {"parameters": 8e9, **facts}, ("method",))
    return made.answers["method"], made.matched("method")[0].id


@pytest.mark.parametrize(
    ("task", "facts", "answer"),
    [
        ("style", {"prompted": "enough", "rows": 5000}, ("prompt", "prompt-is-enough")),
        ("style cost", {"prompted": "enough", "rows": 5000}, ("tune", "cheaper-or-closer")),
        ("facts", {"changes": "daily", "rows": 5000}, ("rag", "facts-that-change")),
        ("facts style", {"changes": "daily", "rows": 5000}, ("rag+tune", "facts-that-change-and-more")),
        ("facts style", {"changes": "daily", "rows": 49}, ("rag", "facts-that-change")),
        ("facts", {}, ("measure", "facts-how-often")),
        ("facts", {"changes": "never", "tokens": 10**7}, ("rag+tune", "lasting-facts-with-much-text")),
        ("facts", {"changes": "yearly", "tokens": 10**5}, ("rag", "lasting-facts")),
        ("task", {"rows": 49, "prompted": "short"}, ("prompt", "few-rows")),
        ("task", {"rows": 50, "prompted": "short"}, ("tune", "style-task-domain")),
        ("task", {"prompted": "short"}, ("measure", "how-many-rows")),
        ("task", {"rows": 500, "prompted": "no"}, ("measure", "prompt-not-tried")),
        ("latency", {"rows": 500, "prompted": "no"}, ("tune", "cheaper-or-closer")),
        ("domain", {"rows": 500}, ("tune", "style-task-domain")),
        ("", {"rows": 500, "recipe": "yes"}, ("tune", "recipe-at-hand")),
        ("", {"rows": 500}, ("measure", "what-should-get-better")),
    ],
)
def test_the_approach(task, facts, answer):
    assert approach(task, **facts) == answer


@pytest.mark.parametrize(
    ("facts", "answer"),
    [
        ({"parameters": None}, ("measure", "no-model")),
        ({"qlora_fits": "no", "lora_fits": "no"}, ("smaller-model", "nothing-fits")),
        ({"qlora_fits": "no", "lora_fits": "yes"}, ("lora", "dense-weights-fit")),
        ({"qlora_fits": "yes", "lora_fits": "no"}, ("qlora", "only-4-bit-fits")),
        ({"qlora_fits": "yes", "lora_fits": "yes"}, ("lora", "dense-weights-fit")),
        ({"lora_fits": "yes", "parameters": 135e6}, ("lora", "small-model")),
        ({"full_fits": "yes", "lora_fits": "yes", "capacity": "above"}, ("full", "more-than-an-adapter-holds")),
        ({"full_fits": "yes", "lora_fits": "yes", "capacity": "above", "serve": "many"}, ("lora", "dense-weights-fit")),
        ({"full_fits": "no", "lora_fits": "yes", "capacity": "above"}, ("lora", "dense-weights-fit")),
    ],
)
def test_the_method(facts, answer):
    assert method(**facts) == answer


def test_every_rule_can_be_reached():
    """Each rule's own wishes, together with nothing else or with what lets the rules before it pass."""
    tune = {"task": frozenset({"style"}), "prompted": "short", "rows": 500}
    others = [
        {},
        tune,
        {"rows": 500},
        {"changes": "never"},
        {"parameters": 8e9},
        {"parameters": 8e9, "lora_fits": "no"},
    ]
    for stage in ADVICE.stages:
        for rule in stage.rules:
            wishes = {name: _value(name, wish) for name, wish in (rule.when | rule.also).items()}
            if "task" in rule.when and "task" in rule.also:
                wishes["task"] = _value("task", rule.when["task"]) | _value("task", rule.also["task"])
            reached = [decide(ADVICE, {**other, **wishes}, (stage.name,)).matched(stage.name) for other in others]
            assert any(rule in matched for matched in reached), rule.id


def _value(name, wish):
    """A value of the fact that the condition wants."""
    if isinstance(wish, str | list):
        word = wish if isinstance(wish, str) else wish[0]
        return None if word == "unknown" else frozenset({word}) if name == "task" else word
    return wish.at_least if wish.at_least is not None else wish.below - 1


def test_every_rule_has_a_reason_and_a_source_and_every_answer_says_what_to_type_where_it_is_to_measure():
    for stage in ADVICE.stages:
        for rule in stage.rules:
            assert rule.reason
            assert rule.source
            assert rule.measure or rule.answer not in ("measure", "smaller-model"), rule.id


def test_a_step_says_the_fact_that_decided():
    made = decide(ADVICE, {"task": frozenset({"task"}), "rows": 30}, ("approach",))
    said = {step.rule.id: (step.matched, step.because) for step in made.steps}
    assert said["few-rows"] == (True, "rows 30")
    assert said["facts-that-change"] == (False, "task task, not facts")
    assert said["prompt-is-enough"] == (False, "prompted unknown, not enough")


WORDS = {name: st.sampled_from(words) if words else st.integers(0, 10**12) for name, words in DERIVED.items()}
WORDS |= {
    name: st.frozensets(st.sampled_from(list(asked.choices)))
    if asked.many
    else st.integers(0, 10**6)
    if asked.number
    else st.sampled_from(list(asked.choices))
    for name, asked in ADVICE.questions.items()
}


@given(st.fixed_dictionaries({}, optional=WORDS))
def test_any_facts_lead_to_one_answer_a_stage_by_rules_that_were_asked(facts):
    made = decide(ADVICE, facts, STAGES)
    assert set(made.answers) == {"approach", "method"}
    for stage in ("approach", "method"):
        assert len(made.matched(stage)) == (1 if made.answers[stage] != "measure" or made.matched(stage) else 0)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("when: {prompted: enough}", "when: {promted: enough}", "asks for promted, which is no fact"),
        ("when: {prompted: enough}", "when: {prompted: plenty}", "asks whether prompted is plenty"),
        ("when: {rows: {below: 50}}", "when: {prompted: {below: 50}}", "asks whether prompted is"),
        ("answer: prompt\n", "answer: prompting\n", "answers prompting"),
        ("id: few-rows", "id: how-many-rows", "two rules have one id"),
        ("    first: true", "    furst: true", "Extra inputs are not permitted"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path, before, after, said):
    text = FILE.read_text(encoding="utf-8")
    assert before in text
    (tmp_path / "advice.yaml").write_text(text.replace(before, after, 1))
    with pytest.raises(TopcoatError, match="advice") as caught:
        load_advice(tmp_path / "advice.yaml")
    assert said in str(caught.value)
