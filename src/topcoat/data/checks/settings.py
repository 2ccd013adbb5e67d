"""DataChecks: one key for each check, and what the run does about its findings. No numpy here."""

from __future__ import annotations

from typing import Literal

from topcoat.config import Config

Policy = Literal["warn", "stop", "off"]


class DataChecks(Config):
    """What is looked for in the rows, and whether a finding is told (warn), ends the run (stop) or is not looked for
    (off). `topcoat data check` runs all of them; `topcoat train` runs those that cost little."""

    too_few_rows: Policy = "warn"
    """Fewer than 50 training rows."""
    capacity: Policy = "warn"
    """More target tokens than the adapter has parameters, or fewer than one for every thousand of them."""
    exact_duplicates: Policy = "warn"
    """Rows equal to an earlier one, but for letter case and white space."""
    near_duplicates: Policy = "warn"
    """Rows that share four fifths of their 5-byte shingles with an earlier one."""
    repeated_templates: Policy = "warn"
    """Rows that differ from many others only in numbers and names."""
    repeated_openings: Policy = "warn"
    """Answers that begin with the same five words more often than one in five."""
    few_distinct_ngrams: Policy = "warn"
    """Answers that are made of few different word triples."""
    one_topic: Policy = "warn"
    """Most instructions fall into one cluster, though they are no classification."""
    mixed_formats: Policy = "warn"
    """A few answers lack the form (JSON, a final mark) that nearly all have; or the answers are of two forms, and the
    prompts do not say which is wanted."""
    template_text: Policy = "warn"
    """Marks of a chat template, such as <|im_start|> or [INST], written in the text of a turn or of a tool."""
    outer_space: Policy = "warn"
    """White space at the outer edge of some prompts or answers and not of most."""
    label_spelling: Policy = "warn"
    """Labels that differ only in case, white space or punctuation."""
    odd_rows: Policy = "warn"
    """Rows that can be read and are often a mistake: two turns of the user in a row, a call that no tool takes, answers
    marked 0 or 1 that are trained whatever their mark."""
    contradictions: Policy = "warn"
    """One prompt with different labels, different results or different short answers."""
    empty_prompts: Policy = "warn"
    """Prompts without a letter or digit."""
    empty_answers: Policy = "stop"
    """Answers of white space only: they teach the model to say nothing."""
    truncated_answers: Policy = "warn"
    """Answers that end in the middle."""
    refusals: Policy = "warn"
    """Answers in which a model declines or speaks of itself as an AI."""
    repeated_text: Policy = "warn"
    """Answers that say the same over and over."""
    wrong_language: Policy = "warn"
    """Answers in another language than their prompt, where that was not asked for; one finding where most are."""
    mojibake: Policy = "warn"
    """Text decoded with the wrong encoding, such as Ã© for é, or with U+FFFD in it."""
    debris: Policy = "warn"
    """HTML tags and entities, log lines and terminal codes outside of code."""
    hidden_characters: Policy = "warn"
    """Control characters, marks that turn the direction of reading, and other characters that nobody sees."""
    secrets: Policy = "stop"
    """Keys, tokens and passwords, in any turn or tool: a model repeats what it was trained on."""
    personal_data: Policy = "warn"
    """E-mail addresses, telephone numbers, bank accounts and card numbers."""
    refused_rows: Policy = "stop"
    """Rows that a run refuses: the chat template leaves a turn out, moves or rewrites it, or no token would be trained.
    Found with a recipe, by its tokenizer and data.allow. A run stops at them in any case."""
    class_imbalance: Policy = "warn"
    """One label on more than nine rows of ten, or twenty times as frequent as another."""
    rare_labels: Policy = "warn"
    """Labels with fewer than five rows."""
    length_imbalance: Policy = "warn"
    """One row of a hundred holds more than a third of all text."""
    overlong: Policy = "warn"
    """Rows longer than max_length, which are cut or left out. With overlong: error a run stops at them in any case."""
    packing: Policy = "warn"
    """Less than nine tenths of the positions that are computed hold a token."""
    validation_leaks: Policy | Literal["auto"] = "auto"
    """Validation rows whose prompt is a training prompt too. auto is stop, but where every validation prompt is trained
    on, the run is taken for a test of memory, made on purpose: it goes on with a warning."""
    validation_near: Policy = "warn"
    """Validation rows whose prompt is nearly a training prompt."""
    benchmark_leaks: Policy = "stop"
    """Rows of a named benchmark that stand in the training or validation rows, whole or by most of their 8-grams."""
    unseen_labels: Policy = "warn"
    """Labels of the validation rows that no training row has. A run with objective: classification stops at those that
    data.labels does not name, in any case."""
