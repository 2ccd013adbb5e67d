"""Straight rows: whatever goes the short way has the very tokens, labels and texts of the long one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_texts import SPECIAL, texts_of
from public_templates import FOLDER, PUBLIC, public_tokenizer

from topcoat.data import straight
from topcoat.data.child import Progress
from topcoat.data.columns import Columns
from topcoat.data.encode import Encoder
from topcoat.data.labelled import VERIFY_EVERY, Shape
from topcoat.data.straight import straight_of
from topcoat.data.verbatim import forbidden_texts
from topcoat.data.words import NotSeparable, words_of

CONTENTS = texts_of(*SPECIAL, "im_end|>", "<think>\nhm\n</think>\n\n", "[INST]", " ")
ROLES = st.sampled_from(
    [
        ("user", "assistant"),
        ("system", "user", "assistant"),
        ("user", "assistant") * 2,
        ("system", *("user", "assistant") * 3),
        ("user", "assistant", "user"),
        ("user", "user", "assistant"),
    ]
)
LOSSES = ("assistant", "completion", "last_turn", "all")


@st.composite
def conversations(draw):
    return {"messages": [{"role": role, "content": draw(CONTENTS)} for role in draw(ROLES)]}


@pytest.fixture(scope="module")
def progress():
    with tempfile.TemporaryFile() as file:
        file.truncate(2**14)
        yield Progress(file.fileno())


def answer(encoder: Encoder, progress: Progress, rows: list[dict]) -> tuple:
    numbered = list(enumerate(rows, start=1))
    values, blobs = encoder.encode(progress, "a.jsonl", numbered[0], numbered, True)
    return values, [bytes(blob) for blob in blobs]


@pytest.fixture(scope="module")
def both_ways(chat):
    """both_ways(loss_on) -> an encoder that may go straight and one that never does."""
    kept: dict[str, tuple[Encoder, Encoder]] = {}

    def make(loss_on):
        if loss_on not in kept:
            common = (chat.tokenizer, None, "messages", Columns(), loss_on, chat.family.allow)
            kept[loss_on] = (Encoder(*common), Encoder(*common, by_words=False))
        return kept[loss_on]

    return make


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(conversations(), min_size=1, max_size=4), loss_on=st.sampled_from(LOSSES))
def test_both_ways_give_the_same_bytes(both_ways, progress, rows, loss_on):
    quick, slow = both_ways(loss_on)
    expected = answer(slow, progress, rows)
    try:
        assert answer(quick, progress, rows) == expected
    except NotSeparable:
        pytest.fail("a shortcut was taken that had to be taken back")
    alone = [row for row in rows if not answer(slow, progress, [row])[0]["bad_count"]]
    if len(alone) < len(rows) and alone:  # one bad row empties an answer: the good ones are compared without it
        assert answer(quick, progress, alone) == answer(slow, progress, alone)


PROVED = sorted(name for name in PUBLIC if forbidden_texts((FOLDER / f"{name}.jinja").read_text("utf-8")) is not None)


@pytest.fixture(scope="module", params=PROVED)
def public(request):
    """An encoder that may go straight and one that never does, for each public template that is proved."""
    common = (public_tokenizer(request.param), None, "messages", Columns(), "assistant", ("rewritten_answers",))
    return Encoder(*common), Encoder(*common, by_words=False)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(row=conversations())
def test_both_ways_give_the_same_bytes_for_public_templates(public, progress, row):
    quick, slow = public
    assert answer(quick, progress, [row]) == answer(slow, progress, [row])


def test_plain_rows_of_common_templates_do_go_straight(chat_of, progress):
    for name in ("chatml", "llama3"):
        chat = chat_of(name)
        encoder = Encoder(chat.tokenizer, None, "messages", Columns(), "assistant", ())
        assert encoder._straight is not None
        rows = [
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"No. {i}"}]}
            for i in range(9)
        ]
        encoder.renderer.encode_many = None  # the long way is not asked for a row
        with pytest.raises(TypeError):
            answer(
                encoder,
                progress,
                [*rows, {"messages": [*rows[0]["messages"][:1], {"role": "assistant", "content": " "}]}],
            )
        shapes = list(encoder._straight._shapes.values())
        assert [shape._met for shape in shapes] == [9]


LOOP = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ BODY }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize(
    "body",
    [
        "m.content",
        "m['content'] | trim",
        "m.content.rstrip() + '\n'",
        "m.content if m.role == 'user' else m['content'].strip()",
        "(bos_token or '') ~ m.content",
        "'' if m.content is none else m.content",
    ],
)
def test_contents_that_are_only_written_are_proved(body):
    assert forbidden_texts(LOOP.replace("BODY", body)) == frozenset()


@pytest.mark.parametrize(
    "body",
    [
        "m.content | upper",
        "m.content[:10]",
        "m | tojson",
        "m.content.replace('a', 'b')",
        "m.content.split('x')[0]",
        "m.content | length",
        "'a' if m.content == 'yes' else 'b'",
        "'a' if m.content in 'yes' else 'b'",
        "'a' if 'x' in (m.role + m.content) else 'b'",
        "m.content * 2",
        "m.content | trim('x')",
        "m.content.strip('x')",
        "m.items() | list",
        "m[m.role]",
        "messages | join",
        "loop.previtem.content",
        "loop.changed(m.content)",
        "'%s' % m.content",
        "m.content.startswith('x')",
        "[m.content]",
        "{'a': m.content}['a']",
        "raise_exception(m.content)",
        "namespace(a=m.content).a",
    ],
)
def test_contents_that_are_looked_into_are_not_proved(body):
    assert forbidden_texts(LOOP.replace("BODY", body)) is None


@pytest.mark.parametrize(
    "template",
    [
        "{% macro w(x) %}{{ x }}{% endmacro %}{% for m in messages %}{{ w(m.content) }}{% endfor %}",
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = m.content %}{{ ns.t }}{% endfor %}",
        "{% set t %}{{ messages[0].content }}{% endset %}{{ t | upper }}",
        "{% for m in messages recursive %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ x | upper }}{% set x = m.content %}{{ x }}{% endfor %}",
        "{% for m in messages | sort(attribute='content') %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{% for c in messages[0].content %}{{ c }}{% endfor %}",
        "{{ messages }}",
        "{% for m in messages %}{{ m.content",
        "{% include 'x' %}",
        "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
    ],
)
def test_what_is_not_known_to_be_harmless_is_not_proved(template):
    assert forbidden_texts(template) is None


@pytest.mark.parametrize(
    "body",
    [
        "m | tojson if m.role == 'tool' else m.content",
        "m.content | tojson if m.content is not string else m.content",
        "m.content | tojson if m.content is mapping and m.role else m.content",
        "m.tool_calls | tojson ~ m.content.split('x')[0] if m.tool_calls is defined else m.content",
        "m | tojson if 'tool_calls' in m else m.content",
        "m | tojson if m['role'] in ['tool', 'ipython'] or m.tool_calls else m.content",
        "(m | tojson) if tools is not none and m == messages[-1] else m.content",
        "m.content if m.content != false else ''",
    ],
)
def test_what_is_written_of_other_messages_is_passed_over(body):
    assert forbidden_texts(LOOP.replace("BODY", body)) == frozenset()


@pytest.mark.parametrize(
    "template",
    [
        LOOP.replace("BODY", "m | tojson if m.role == 'user' else m.content"),
        LOOP.replace("BODY", "m | tojson if m.role != 'tool' else m.content"),
        LOOP.replace("BODY", "m | tojson if m.role in ['tool', 'user'] else m.content"),
        LOOP.replace("BODY", "m | tojson if 'role' in m else m.content"),
        "{% set tools = 1 %}" + LOOP.replace("BODY", "m | tojson if tools else m.content"),
        # a name that is not always a message
        "{% set x = '' %}{% for m in messages %}{% if 'y' in x %}{{ m | tojson }}{% endif %}"
        "{% set x = m %}{% endfor %}",
        "{% set c = '</s>' %}{% for m in messages %}{% if '</s>' in c %}{{ m.content | upper }}{% endif %}"
        "{% set c = m.content %}{{ c }}{% endfor %}",
        "{% set a, b = messages[0].content, 1 %}{{ a | upper }}",
        LOOP.replace("messages", "messages | selectattr('content', 'equalto', 'x')").replace("BODY", "m.content"),
    ],
)
def test_what_may_be_written_of_these_messages_is_not_passed_over(template):
    assert forbidden_texts(template) is None


@pytest.mark.parametrize("name", ["llama3_1", "llama2", "gemma3", "mistral_v1", "mistral_v7_tekken", "phi4", "qwen2_5"])
def test_public_templates_are_proved(name):
    path = Path(__file__).parent / "templates" / f"{name}.jinja"
    assert forbidden_texts(path.read_text("utf-8")) == frozenset()


def test_a_text_that_is_asked_for_may_stand_in_no_content():
    body = "m.content if '</think>' not in m.content else m.content.strip()"
    assert forbidden_texts(LOOP.replace("BODY", body)) == {"</think>"}


def test_a_rendering_that_is_another_takes_the_shortcut_back(chat_of, progress, monkeypatch):
    monkeypatch.setattr(straight, "forbidden_texts", lambda template: frozenset())  # a proof that errs
    tokenizer = chat_of("chatml").tokenizer
    template = LOOP.replace("BODY", "m.content | upper")
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes."}]}]
    encoder = Encoder(tokenizer, template, "messages", Columns(), "assistant", ("rewritten_answers",))
    assert answer(encoder, progress, rows)[0] == {"by_words": False}


def test_templates_that_mark_their_answers_go_the_long_way(chat_of):
    chat = chat_of("marked")
    words = words_of(chat.tokenizer.backend_tokenizer)
    assert straight_of(chat.renderer, words, "assistant") is None


def test_threads_that_share_a_shape_verify_its_first_text_and_one_in_so_many():
    shape = Shape(("user", "assistant"), ["", "", ""], [None, None], {1: 0}, {}, [[], [], []], [0, 0, 0], [(1, 1)])
    assert [*shape.to_verify(1)] == [0]
    assert [*shape.to_verify(600)] == [255, 511]
    found = []
    counts = [1 + number % 7 for number in range(2000)]

    def meet():
        for count in counts:
            found.append(len(shape.to_verify(count)))

    threads = [Thread(target=meet) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 3 + sum(found) == -(-(601 + 4 * sum(counts)) // VERIFY_EVERY)
