"""The cache: tokens are made once; what decides them is in the key, and what is damaged is made again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from feed_rows import rows, said

from topcoat.data import cache
from topcoat.errors import Interrupted, TopcoatError


def test_the_second_time_tokens_come_from_the_cache_and_are_the_same(load, write, builds):
    path = write("a.jsonl", rows(30))
    first, second = load(path, validation=0.2), load(path, validation=0.2)
    assert builds == ["a.jsonl"]
    assert said(first.train) == said(second.train)
    assert said(first.validation) == said(second.validation)
    assert first.identity() == second.identity()
    assert first.report.to_dict() == second.report.to_dict()
    without = load(path, validation=0.2, cache=False)
    assert builds == ["a.jsonl"] * 2
    assert said(without.train) == said(first.train)
    assert without.identity() == first.identity()


def test_tokens_are_those_of_the_renderer(load, write, chatml):
    from topcoat.data.row_formats import to_conversations
    from topcoat.data.rows import read_rows

    path = write("a.jsonl", rows(20))
    read = read_rows(path)
    expected = chatml.renderer.encode_many(to_conversations(read, "auto", {})[1], read, "assistant").examples
    assert said(load(path, validation=write("b.jsonl", rows(20))).validation)[3][0] == expected[3].input_ids
    assert [e.input_ids for e in load(path).train] == [e.input_ids for e in expected]
    assert [e.labels for e in load(path).train] == [e.labels for e in expected]


@pytest.mark.parametrize(
    "change",
    [
        {"loss_on": "all"},
        {"format": "prompt_completion"},
        {"text_template": "{prompt}\n{completion}"},
        {"validation": 0.5},  # keeps the texts of answers
        {"allow": ["rewritten_answers"]},
        {"template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_tokens_is_in_the_key(load, write, builds, change):
    path = write("a.jsonl", rows(10))
    load(path)
    load(path, **change)
    assert len(builds) == 2


def test_another_file_or_tokenizer_is_another_key_and_other_settings_are_not(load, write, builds, chat_of):
    path = write("a.jsonl", rows(10))
    load(path)
    load(path, max_length=128, packing=False, overlong="drop")
    load(write("renamed.jsonl", rows(10)))
    assert len(builds) == 1  # the same bytes under another name are the same rows
    assert load(write("renamed.jsonl", rows(10))).train[0].row.place == "renamed.jsonl line 1"
    Path(path).write_text(Path(path).read_text().replace("Question w 3", "Question w x"))
    load(path)
    load(path, tokenizer=chat_of("qwen3").tokenizer)
    assert len(builds) == 3


@pytest.mark.parametrize("name", ["ids.bin", "trained.bin", "rows.bin", "texts.bin", "store.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_store_is_made_again_and_said(load, write, builds, folder, name, damage):
    path = write("a.jsonl", rows(10))
    whole = load(path, validation=0.2)
    [store] = [entry for entry in folder.iterdir() if entry.is_dir()]
    file = store / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 64
    file.unlink()
    if damage != "gone":
        file.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    mended = load(path, validation=0.2)
    assert said(mended.train) == said(whole.train)
    damaged = "damaged" in " ".join(mended.report.notes)
    assert damaged == (len(builds) == 2)
    assert damaged or (name, damage) == ("store.json", "flipped")  # a bit of a note in it is no token


def test_a_build_that_fails_leaves_nothing(load, write, folder):
    path = write("a.jsonl", [*rows(3), {"prompt": "a", "completion": 7}])
    with pytest.raises(TopcoatError, match=r'a\.jsonl line 4: "completion" is a number \(7\); expected text'):
        load(path)
    assert not any(entry.is_dir() for entry in folder.iterdir())


def test_two_processes_build_one_store(write, folder, chatml, tmp_path):
    path = write("a.jsonl", rows(2000))
    chatml.tokenizer.save_pretrained(tmp_path / "tokenizer")
    code = f"""if True:
        from transformers import PreTrainedTokenizerFast
        from topcoat.data import prepare
        from topcoat.data.load import load_data
        from topcoat.data.settings import DataSettings
        once, built = prepare._build, []
        prepare._build = lambda *arguments: (built.append(1), once(*arguments))
        tokenizer = PreTrainedTokenizerFast.from_pretrained({str(tmp_path / "tokenizer")!r})
        settings = DataSettings(train={path!r}, validation=None)
        data = load_data(settings, tokenizer, context_length=512, seed=1)
        print(len(built), data.identity())
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    found = [process.communicate(timeout=120)[0].split() for process in started]
    assert sorted(built for built, _ in found) == ["0", "1"]
    assert found[0][1] == found[1][1]
    assert [entry.name for entry in folder.iterdir() if "tmp" in entry.name or entry.suffix == ".lock"] == []


def test_waiting_for_another_process_can_be_left(folder, tmp_path):
    store = cache.Cache(folder, [], lambda: None)

    def leave() -> None:
        raise Interrupted("stop")

    with store._alone(folder / "k.lock"), pytest.raises(Interrupted):
        cache.Cache(folder, [], leave).store("k", lambda path: None, "a.jsonl")


def test_a_cache_folder_that_cannot_be_written_is_done_without(load, write, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    data = load(write("a.jsonl", rows(5)))
    assert len(data.train) == 5
    assert any("cannot be written: this run's tokens are not kept" in note for note in data.report.notes)


def age(store, hours):
    os.utime(store, (os.stat(store).st_atime, os.stat(store).st_mtime - 3600 * hours))


def test_stores_that_were_not_used_for_longest_make_room(load, write, folder):
    for name in "abcd":
        load(write(f"{name}.jsonl", rows(20, name)))
    first, second, third, fourth = (store for _, _, store in cache.cached(folder))
    size = sum(size for _, size, _ in cache.cached(folder))
    for hours, store in ((9, second), (7, first), (5, third)):
        age(store, hours)
    cache.evict(folder, size)
    assert len(cache.cached(folder)) == 4
    cache.evict(folder, size - 1)
    assert [store for _, _, store in cache.cached(folder)] == [first, third, fourth]
    data = load(str(folder.parent.parent / "c.jsonl"))  # now it is the last used
    cache.evict(folder, 0)
    assert [store for _, _, store in cache.cached(folder)] == [fourth, third]  # used within the hour
    age(third, 2)
    cache.evict(folder, 0)
    assert not third.exists()
    assert len(data.train[0].input_ids) > 0  # what is mapped stays


def test_a_store_that_is_deleted_while_it_is_opened_is_made_again(load, write, builds, folder, monkeypatch):
    path = write("a.jsonl", rows(5))
    load(path)
    once = cache.Store

    def vanishing(place):
        if place.parent == folder and len(builds) == 1:
            cache.discard(place)
        return once(place)

    monkeypatch.setattr(cache, "Store", vanishing)
    data = load(path)
    assert builds == ["a.jsonl"] * 2
    assert not any("damaged" in note for note in data.report.notes)
