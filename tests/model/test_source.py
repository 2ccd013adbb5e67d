"""A local path wins; a hub id is asked for only then, and a machine without a network says so."""

from __future__ import annotations

import pytest

from topcoat.errors import TopcoatError
from topcoat.model.gguf_source import GgufSource
from topcoat.model.safetensors_source import DirectorySource
from topcoat.model.settings import ModelSettings
from topcoat.model.source import open_source
from topcoat.model.tiny import save_tiny, tiny_model


def test_a_directory_and_a_gguf_are_told_apart(tmp_path, write_gguf):
    assert isinstance(open_source(ModelSettings(path=str(save_tiny(tmp_path / "hf")))), DirectorySource)
    assert isinstance(open_source(ModelSettings(path=str(write_gguf(tiny_model("llama"))))), GgufSource)


def test_a_local_directory_wins_over_a_hub_id_of_the_same_spelling(tmp_path, monkeypatch):
    save_tiny(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_source(ModelSettings(path="owner/name")), DirectorySource)


def test_a_path_that_is_nowhere_and_no_hub_id_is_named():
    with pytest.raises(TopcoatError, match=r"no such file or directory: \./models/none/x") as caught:
        open_source(ModelSettings(path="./models/none/x"))
    assert "model.path" in str(caught.value)


def test_a_hub_id_without_a_network_is_a_clear_error(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def unreachable(repo_id, **options):
        asked.append((repo_id, options))
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot find the files in the cache, and no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(TopcoatError, match="owner/name is not a local path, and the hub cannot be reached"):
        open_source(ModelSettings(path="owner/name", revision="main"))
    ((repo, options),) = asked
    assert (repo, options["revision"]) == ("owner/name", "main")
    assert "*.safetensors" in options["allow_patterns"]
    assert {"*.bin", "*.py", "*.pt"} <= set(options["ignore_patterns"])


def test_a_downloaded_snapshot_is_opened(tmp_path, monkeypatch):
    import huggingface_hub

    save_tiny(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **options: str(tmp_path))
    assert open_source(ModelSettings(path="owner/name")).path == tmp_path


def test_a_revision_of_a_local_path_is_refused(tmp_path):
    save_tiny(tmp_path)
    with pytest.raises(TopcoatError, match=r"model\.revision is 'v2', but the model is a local path"):
        open_source(ModelSettings(path=str(tmp_path), revision="v2"))
