"""FrozenLinear: it computes, passes the gradient on, and never changes."""

import copy
import hashlib
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from topcoat.kernels.scratch import release_scratch, scratch_bytes
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import DenseConfig, Int8Config, Nf4Config

CONFIGS = [Nf4Config(), Nf4Config(double_quant=False), Int8Config(), DenseConfig(format="bf16")]


def layer_of(config, compute_dtype=torch.float32, shape=(24, 64), seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(shape, generator=generator), torch.randn(shape[0], generator=generator)
    return FrozenLinear.from_dense(weight, bias, config, compute_dtype)


def digest(layer):
    state = [tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in layer.state_dict().values()]
    return hashlib.sha256(b"".join(state)).digest()


@pytest.fixture(params=CONFIGS, ids=str)
def config(request):
    return request.param


def test_nothing_in_it_trains(config):
    layer = layer_of(config)
    assert list(layer.parameters()) == []
    assert not any(buffer.requires_grad for buffer in layer.buffers())


def test_the_gradient_is_right_in_double_precision(config):
    layer = layer_of(config, torch.float64, shape=(5, 7))
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_an_input_of_another_dtype_is_computed_in_the_compute_dtype(config):
    layer = layer_of(config, torch.bfloat16)
    x = torch.randn(2, 64, requires_grad=True)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, layer(x.bfloat16()))
    y.sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64), (2, 1, 3, 64), (0, 64)])
def test_leading_dimensions_are_kept(config, shape):
    layer = layer_of(config)
    x = torch.randn(shape)
    y = layer(x)
    assert y.shape == (*shape[:-1], 24)
    torch.testing.assert_close(y, F.linear(x, layer.dense_weight(torch.float32), layer.bias))


def test_the_bytes_stay_the_same_through_training(config):
    layer = layer_of(config)
    before = digest(layer)
    lora_A = nn.Parameter(torch.randn(4, 64))
    optimizer = torch.optim.SGD([lora_A], lr=0.1)
    for _ in range(3):
        layer(torch.randn(8, 4) @ lora_A).square().sum().backward()
        optimizer.step()
    layer.dense_weight(torch.float32).zero_()
    assert digest(layer) == before


def test_casting_the_model_leaves_the_stored_bytes_alone(config):
    layer = layer_of(config)
    before = digest(layer)
    for cast in (nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda m: m.to("cpu", torch.float16)):
        cast(nn.Sequential(layer))
        assert digest(layer) == before
    assert layer(torch.randn(1, 64)).dtype == torch.float32


def test_moving_it_moves_all_of_the_state(config):
    layer = layer_of(config).to("meta")
    assert layer.device.type == "meta"
    assert {buffer.device.type for buffer in layer.buffers()} == {"meta"}
    assert {tensor.device.type for tensor in layer.weight_state.tensors.values()} == {"meta"}


def test_a_state_dict_rebuilds_it(config):
    one, other = layer_of(config, seed=1), layer_of(config, seed=2)
    x = torch.randn(3, 64)
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


def test_names_in_the_state_dict():
    assert set(layer_of(Nf4Config()).state_dict()) == {"codes", "absmax", "nested_absmax", "offset", "bias"}
    assert set(layer_of(Int8Config()).state_dict()) == {"codes", "absmax", "bias"}
    assert set(layer_of(DenseConfig()).state_dict()) == {"weight", "bias"}


def test_a_deep_copy_computes_the_same_on_its_own_bytes(config):
    layer = layer_of(config)
    other = copy.deepcopy(layer)
    x = torch.randn(3, 64)
    assert torch.equal(layer(x), other(x))
    name = next(iter(layer.weight_state.tensors))
    assert other.get_buffer(name).data_ptr() != layer.get_buffer(name).data_ptr()


def test_it_prints_what_it_is():
    text = repr(layer_of(Nf4Config(), torch.bfloat16))
    assert text == "FrozenLinear(in_features=64, out_features=24, bias=True, format=nf4, compute_dtype=bfloat16)"


def test_shared_weights_are_the_very_same_memory():
    linear = nn.Linear(8, 4)
    layer = FrozenLinear.share(linear)
    x = torch.randn(2, 8, requires_grad=True)
    assert layer.get_buffer("weight").data_ptr() == linear.weight.data_ptr()
    assert torch.equal(layer(x), linear(x))
    layer(x).sum().backward()
    assert linear.weight.grad is None


def test_the_input_gradient_by_hand_is_that_of_autograd(config):
    layer = layer_of(config)
    x, grad = torch.randn(3, 64, requires_grad=True), torch.randn(3, 24)
    layer(x).backward(grad)
    assert torch.equal(layer.input_grad(grad), x.grad)


def test_layers_that_share_the_buffer_do_not_mix(config):
    layers = [layer_of(config, shape=shape, seed=i) for i, shape in enumerate([(64, 64), (16, 64), (32, 16)])]
    x = torch.randn(5, 64)

    def run(forward, recompute):
        leaf = x.clone().requires_grad_()
        y = leaf
        for i, _ in enumerate(layers):
            y = checkpoint(forward, i, y, use_reentrant=False) if recompute else forward(i, y)
            y = torch.tanh(y)
        y.sum().backward()
        return y, leaf.grad

    ours = run(lambda i, y: layers[i](y), recompute=False)
    again = run(lambda i, y: layers[i](y), recompute=True)
    dense = [layer.dense_weight(torch.float32) for layer in layers]
    theirs = run(lambda i, y: F.linear(y, dense[i], layers[i].bias), recompute=False)
    for a, b, c in zip(ours, again, theirs, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_threads_at_once_compute_what_one_computes():
    layers = [layer_of(Nf4Config(), shape=(96, 64), seed=i) for i in range(4)]
    x = torch.randn(4, 64)
    expected = [layer(x) for layer in layers]
    wrong = []

    def work(i):
        for _ in range(40):
            if not torch.equal(layers[i](x), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_generation_in_inference_mode_does_not_spoil_training():
    release_scratch()
    layer = layer_of(Nf4Config(), shape=(40, 64))
    with torch.inference_mode():
        layer(torch.randn(1, 64))
    x = torch.randn(1, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("config", [Nf4Config(), Int8Config()], ids=str)
def test_the_graph_holds_no_dense_weight_and_no_input(config):
    release_scratch()
    layer = layer_of(config, shape=(128, 64))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        y = layer(torch.randn(2, 64, requires_grad=True))
    y.sum().backward()
    assert saved == []
    assert scratch_bytes() == 128 * 64 * 4  # one buffer, the size of the largest weight, for forward and backward
