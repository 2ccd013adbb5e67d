"""The tensors of a merged model, one at a time: base + adapter in float32, cast once to the output dtype.

Which base: the one training computed with. Where model.quantization names a format, that is the stored weight read back
(merging into the original weights would bring back the rounding that the adapter learned to live with); else the
checkpoint's own tensor, read again in its own precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from topcoat.adapters.attach import Adapters
from topcoat.adapters.settings import FullConfig
from topcoat.model.fill import _match
from topcoat.model.load import Base
from topcoat.model.score import SCORE
from topcoat.quant.embedding import FrozenEmbedding
from topcoat.quant.linear import FrozenLinear


def merged_tensors(base: Base, adapters: Adapters, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(the model's own name, tensor on the CPU in `dtype`) for every tensor of the model, in the checkpoint's order."""
    if isinstance(adapters.config, FullConfig):
        for name, parameter in adapters.parameters().items():
            yield name, parameter.detach().to(dtype).cpu()
        return
    adapters.require_weights("merged model")
    trained = {f"{path}.{name}": p for path, m in adapters.copies.items() for name, p in m.copy.named_parameters()}
    rows = {f"{path}.weight": module for path, module in (adapters.rows | adapters.tied).items()}
    frozen = {path: m.base for path, m in adapters.layers.items()}
    stored_so = {p: m for p, m in base.model.named_modules() if isinstance(m, FrozenLinear | FrozenEmbedding)}
    frozen |= {path: module for path, module in stored_so.items() if not path.endswith(".base")}
    known: dict[str, tuple[int, ...]] = dict.fromkeys(_names(base, adapters), ())
    known |= {f"{path}.weight": () for path in frozen}
    for stored in base.source.tensors():
        own = _match(stored.name, known, base.model.base_model_prefix)
        if own is None:  # a cache that older files carry: loading has passed over it too
            continue
        path = own.removesuffix(".weight")
        linear = frozen.get(path)
        if own in trained:
            tensor = trained[own].detach()
        elif linear is not None and own.endswith(".weight") and base.settings.quantization is not None:
            tensor = linear.dense_weight(torch.float32)
        else:
            tensor = stored.read()
        if path in adapters.layers and own.endswith(".weight"):
            tensor = adapters.layers[path].merged_weight(tensor)
        elif own.endswith(".bias") and (layer := adapters.layers.get(own.removesuffix(".bias"))) is not None:
            bias = layer.merged_bias()
            tensor = tensor if bias is None or bias is layer.base.bias else bias
        if own in rows:
            tensor = rows[own].on(tensor.float())
        yield own, tensor.detach().to(dtype).cpu().contiguous()
    if base.head is not None:  # in no checkpoint: it was put on the model to be trained, and stays as it was trained
        yield f"{SCORE}.weight", trained[f"{SCORE}.weight"].detach().cpu().contiguous()


def _names(base: Base, adapters: Adapters) -> Iterator[str]:
    """The names of the state dict as they are without adapters."""
    wrapped = [*adapters.layers, *adapters.copies, *adapters.rows, *adapters.tied]
    for name in base.model.state_dict():
        path = next((path for path in wrapped if name.startswith(f"{path}.base.")), None)
        yield name if path is None else f"{path}.{name.removeprefix(f'{path}.base.')}"


def output_dtype(base: Base) -> torch.dtype:
    """The dtype a merged model is written in: that of most of the checkpoint, where it is a float one, else bf16."""
    stored: Counter[str] = Counter()
    for tensor in base.source.tensors():
        stored[tensor.stored_dtype] += tensor.n_bytes
    most = stored.most_common(1)[0][0]
    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(most, torch.bfloat16)
