"""Rounding by calibration: outputs on the rows closer than nearest rounding's, the same integers every time."""

import json

import pytest
import torch

from topcoat.errors import TopcoatError
from topcoat.exporting.calibrating import few_tokens, rounded_linears
from topcoat.exporting.rounded import write_rounded
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.source import open_source
from topcoat.model.tiny import save_tiny
from topcoat.quant.gptq import gptq
from topcoat.quant.grouped import Grouped
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import GptqConfig, IntConfig, read_config

ROWS = [torch.randint(3, 400, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (40, 23, 31, 12)]


def settings(path, quantization, **more):
    return ModelSettings(path=str(path), quantization=quantization, compute_dtype="fp32", device="cpu", **more)


def rounded(path, quantization, rows=ROWS):
    asked = settings(path, quantization)
    return {found.path: found for found in rounded_linears(open_source(asked), asked, rows)}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("gemma2", "phi3", "olmo2")]


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt_neox", "smollm3", *SLOW])
def test_outputs_on_the_rows_are_closer_than_by_rounding_to_the_nearest(tmp_path, kind):
    path = save_tiny(tmp_path / kind, kind)
    config = IntConfig(format="int3", rounding="gptq")
    found = rounded(path, config)
    plain = load_model(settings(path, IntConfig(format="int3"))).model
    assert set(found) == {name for name, m in plain.named_modules() if isinstance(m, FrozenLinear)}
    assert sum(f.error for f in found.values()) < 0.9 * sum(f.nearest_error for f in found.values())

    dense = load_model(settings(path, None)).model
    write_rounded(tmp_path / "rounded", found.values(), {})
    better = load_model(settings(path, config), tmp_path / "rounded").model
    with torch.no_grad():
        ids = [torch.tensor([row]) for row in ROWS]
        wanted = torch.cat([dense(one).logits[0] for one in ids])
        errors = [(torch.cat([m(one).logits[0] for one in ids]) - wanted).norm() for m in (better, plain)]
    assert errors[0] < errors[1]


def test_the_sums_are_those_of_the_inputs_behind_rounded_blocks(llama):
    """A model whose lower block is rounded already, its inputs caught by plain hooks, gives the same integers."""
    config = IntConfig(rounding="gptq")
    found = rounded(llama, config)
    model = load_model(settings(llama, None)).model
    own, names = {}, [name for name, m in model.named_modules() if isinstance(m, FrozenLinear)]
    for block in range(2):
        mine = [name for name in names if f"layers.{block}." in name]
        sums, handles = {}, []
        for name in mine:

            def add(_, inputs, name=name, sums=sums):
                x = inputs[0].flatten(0, -2)
                sums[name] = sums.get(name, 0) + x.T @ x

            handles.append(model.get_submodule(name).register_forward_pre_hook(add))
        with torch.no_grad():
            for row in ROWS:
                model(torch.tensor([row]))
        for handle in handles:
            handle.remove()
        for name in mine:
            linear = model.get_submodule(name)
            own[name] = gptq(linear.dense_weight(torch.float32), sums[name], Grouped(config))
            model.set_submodule(name, FrozenLinear(own[name], Grouped(config), linear.bias, torch.float32))
    assert set(found) == set(own)
    for name, weight in own.items():
        moved = (found[name].weight.tensors["codes"] != weight.tensors["codes"]).float().mean()
        assert moved < 0.01, name  # sums differ in their last bits, and ties fall elsewhere


def test_the_same_rows_give_the_same_integers(llama):
    first, second = (rounded(llama, GptqConfig(group_size=32, rounding="gptq")) for _ in range(2))
    for path, one in first.items():
        for name, tensor in one.weight.tensors.items():
            assert torch.equal(second[path].weight.tensors[name], tensor)


def test_only_linears_that_ask_for_it_are_rounded_by_rows(llama, tmp_path):
    config = read_config(
        {"format": "nf4", "overrides": {"down_proj": {"format": "int4", "rounding": "gptq"}, "lm_head": "int8"}}
    )
    found = rounded(llama, config)
    assert set(found) == {f"model.layers.{n}.mlp.down_proj" for n in (0, 1)}
    write_rounded(tmp_path / "rounded", found.values(), {})
    model = load_model(settings(llama, config), tmp_path / "rounded").model
    formats = {n: m.weight_state.format for n, m in model.named_modules() if isinstance(m, FrozenLinear)}
    assert formats["model.layers.1.mlp.down_proj"] == "int4"
    assert formats["model.layers.1.mlp.up_proj"] == "nf4"
    assert formats["lm_head"] == "int8"


def test_the_identity_stays_that_of_the_checkpoint(llama, tmp_path):
    config = IntConfig(rounding="gptq")
    told = write_rounded(tmp_path / "rounded", rounded(llama, config).values(), {"rows": 4})
    base = load_model(settings(llama, config), tmp_path / "rounded")
    assert base.identity.base == load_model(settings(llama, None)).identity.base
    assert json.loads((tmp_path / "rounded" / "calibration.json").read_text()) == told
    assert told["rows"] == 4
    assert told["mean_error"] < told["mean_nearest_error"]


@pytest.mark.parametrize(
    ("quantization", "rows", "what"),
    [
        ({"format": "int4", "rounding": "gptq"}, [], "there are no rows to calibrate on"),
        ({"format": "int4", "rounding": "gptq"}, [[5, 600]], "the rows have the token 600"),
        (
            {"format": "nf4", "overrides": {"lm_head": {"format": "int4", "rounding": "gptq"}}},
            ROWS,
            "lm_head cannot be rounded by calibration",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_refused(llama, quantization, rows, what):
    with pytest.raises(TopcoatError, match=what):
        rounded(llama, read_config(quantization), rows)


def test_without_rows_a_model_is_not_rounded_in_silence(llama):
    with pytest.raises(TopcoatError, match="rounding gptq needs rows to calibrate on") as caught:
        load_model(settings(llama, IntConfig(rounding="gptq")))
    assert "topcoat quantize --calibrate" in caught.value.problems[0].fix
    with pytest.raises(TopcoatError, match="looks at activations"):
        Grouped(IntConfig(rounding="gptq")).quantize(torch.ones(4, 32))


def test_too_few_tokens_are_told(llama):
    source = open_source(settings(llama, None))
    said = few_tokens(source, [[5] * 100, [6] * 27])
    assert said is not None
    assert "127 tokens, and the widest linear 128 inputs" in said
    assert few_tokens(source, [[5] * 128]) is None
