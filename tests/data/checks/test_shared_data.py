"""What is found in public data sets: little, so that a finding is worth a look."""

import pytest

from topcoat.data.checks.files import check_files
from topcoat.data.settings import DataSettings

pytestmark = pytest.mark.needs_data
COLUMNS = {
    "gsm8k": {"prompt": "question", "completion": "answer"},
    "e2e": {"prompt": "meaning_representation", "completion": "reference"},
    "mmlu": {"prompt": "input", "completion": "output"},
}
# Share of the rows that may be named by each check, after a look at every one of them: what is left are true findings.
KNOWN = {
    "alpaca_train.jsonl": {"truncated_answers": 1, "personal_data": 1},
    "banking77_train.jsonl": {"near_duplicates": 8},
    "gsm8k_train.jsonl": {},
    "lfs_instruct_train.jsonl": {"near_duplicates": 2, "repeated_templates": 28, "contradictions": 2},
    "chat_oasst_train.jsonl": {"refusals": 7, "debris": 1},
    "e2e_train.jsonl": {"exact_duplicates": 122, "near_duplicates": 138, "truncated_answers": 3, "one_topic": 0},
    "mmlu_validation.jsonl": {"mojibake": 1, "hidden_characters": 1},
}


@pytest.mark.parametrize("name", KNOWN)
def test_only_what_was_looked_at_is_found(name, shared_data):
    columns = COLUMNS.get(name.split("_")[0], {})
    settings = DataSettings(train=str(shared_data / name), validation=None, columns=columns)
    verdict = check_files(settings)
    assert {one.check: len(one.rows) for one in verdict.found} == KNOWN[name]
    assert verdict.exit_code == 0


def test_the_parts_of_one_set_share_no_prompt(shared_data):
    for name in ("banking77", "lfs_instruct", "chat_oasst"):
        settings = DataSettings(
            train=str(shared_data / f"{name}_train.jsonl"),
            validation=str(shared_data / f"{name}_validation.jsonl"),
            columns=COLUMNS.get(name, {}),
        )
        verdict = check_files(settings, cheap_only=True)
        assert not [one.check for one in verdict.found if one.check in ("validation_leaks", "unseen_labels")]
        near = [one for one in verdict.found if one.check == "validation_near"]
        assert sum(len(one.rows) for one in near) <= 1
