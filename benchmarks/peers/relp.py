"""Patching beside the code of RelP's authors, a copy of TransformerLens: python benchmarks/peers/relp.py CLONE

CLONE is a clone of github.com/FarnoushRJ/RelP; ``pip install einops fancy-einsum better-abc beartype`` for what it
imports. A small random GPT-2 and a small random Llama get the same weights in both, in float64, though the norms and
rotations of Llama in transformers stay in float32. Compared are all
three methods at the residual stream, the attention outputs and the MLP outputs, and RelP's rule for attention.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
import transformers
from clones import Differences, git
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from assay.analysis.patching.activation import activation_patching
from assay.analysis.patching.attribution import attribution_patching
from assay.analysis.patching.pairs import EncodedPairs
from assay.analysis.patching.relevance import DEFAULT_RULES, RULES
from assay.analysis.patching.sites import SITES

HOOKS = {"residual": "resid_pre", "attention": "attn_out", "mlp": "mlp_out"}
NAMES = {"norm": "LN-rule", "activation": "Identity-rule", "product": "Half-rule", "attention": "AH-rule"}
LAYERS, HIDDEN, HEADS, VOCAB, TIME, PAIRS = 3, 32, 4, 64, 8, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, metavar="CLONE", help="a clone of github.com/FarnoushRJ/RelP")
    clone = parser.parse_args().clone
    transformers.TRANSFORMERS_CACHE = ""  # a name of earlier versions, which the clone asks for
    sys.modules["wandb"] = MagicMock()
    sys.path.insert(0, str(clone / "TransformerLens"))
    lens = importlib.import_module("transformer_lens")
    found = Differences()
    for kind in ("gpt2", "llama"):
        model, pairs = made(kind)
        theirs = hooked(lens, kind, model, None)
        metric = functools.partial(scaled, pairs=pairs, between=baselines(theirs, pairs))
        cache = theirs.run_with_cache(pairs.clean)[1]
        truth = lens.patching.get_act_patch_block_every(theirs, pairs.corrupted, cache, metric)
        ours = activation_patching(model, pairs)
        for index, site in enumerate(SITES):
            found.add(f"{kind}, activation patching, {site}", ours[site], truth[index].float())
        for name, rules in (("attribution patching", ()), ("RelP", DEFAULT_RULES), ("RelP and attention", RULES)):
            ours = attribution_patching(model, pairs, rules=rules)
            expected = attributed(hooked(lens, kind, model, rules), pairs, cache, metric)
            for site in SITES:
                found.add(f"{kind}, {name}, {site}", ours[site], expected[site])
    peer: Any = SimpleNamespace(
        repository="github.com/FarnoushRJ/RelP",
        commit=git(clone, "rev-parse", "HEAD").strip(),
        file="TransformerLens/transformer_lens",
    )
    found.write(peer, __file__, layers=LAYERS, hidden_size=HIDDEN, positions=TIME, pairs=PAIRS, dtype="float64")


def made(kind: str) -> tuple[Any, EncodedPairs]:
    sizes = {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": HEADS, "vocab_size": VOCAB}
    if kind == "llama":
        sizes |= {"num_key_value_heads": HEADS, "intermediate_size": 48, "max_position_embeddings": 32}
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **special)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.ndim > 1 else 0.02)
    clean = torch.randint(VOCAB, (PAIRS, TIME))
    corrupted = clean.clone()
    corrupted[:, 3] = (clean[:, 3] + 1 + torch.arange(PAIRS)) % VOCAB
    return model, EncodedPairs(clean, corrupted, torch.arange(PAIRS), torch.arange(PAIRS) + 10)


def hooked(lens: Any, kind: str, model: Any, rules: tuple[str, ...] | None) -> Any:
    """The clone's model with the weights of ``model``, with ``rules`` set before it is built."""
    shape = {"n_layers": LAYERS, "d_model": HIDDEN, "n_heads": HEADS, "d_head": HIDDEN // HEADS, "d_vocab": VOCAB}
    if kind == "gpt2":
        own = {"act_fn": "gelu_new", "normalization_type": "LN", "eps": 1e-5, "n_ctx": 1024}
    else:
        own = {
            "act_fn": "silu",
            "normalization_type": "RMS",
            "eps": 1e-6,
            "n_ctx": 32,
            "d_mlp": 48,
            "gated_mlp": True,
        }
        own |= {"positional_embedding_type": "rotary", "rotary_dim": HIDDEN // HEADS, "final_rms": True}
        own |= {"rotary_adjacent_pairs": False, "rotary_base": 10_000}
    config = lens.HookedTransformerConfig(**shape, **own, dtype=torch.float64, device="cpu")
    config.use_lrp = bool(rules)
    config.LRP_rules = [NAMES[rule] for rule in rules or ()]
    theirs = lens.HookedTransformer(config)
    convert = importlib.import_module(f"transformer_lens.pretrained.weight_conversions.{kind}")
    state = getattr(convert, f"convert_{kind}_weights")(model, config)
    theirs.load_state_dict(state, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(torch.arange(6)[None]), model(torch.arange(6)[None]).logits, rtol=0, atol=1e-5
        )
    return theirs


@torch.no_grad()
def baselines(theirs: Any, pairs: EncodedPairs) -> tuple[Tensor, Tensor]:
    clean, corrupted = (pairs.difference(theirs(ids)[:, -1]).mean() for ids in (pairs.clean, pairs.corrupted))
    return clean, corrupted


def scaled(logits: Tensor, pairs: EncodedPairs, between: tuple[Tensor, Tensor]) -> Tensor:
    clean, corrupted = between
    return (pairs.difference(logits[:, -1]).mean() - corrupted) / (clean - corrupted)


def attributed(theirs: Any, pairs: EncodedPairs, clean: Any, metric: Any) -> dict[str, Tensor]:
    """Its activations and gradients by its hooks, multiplied as its demonstration does."""
    values: dict[str, Tensor] = {}
    slopes: dict[str, Tensor] = {}

    def forward(x: Tensor, hook: Any) -> None:
        values[hook.name] = x.detach()

    def backward(x: Tensor, hook: Any) -> None:
        slopes[hook.name] = x.detach()

    def wanted(name: str) -> bool:
        return name.endswith(tuple(f"hook_{hook}" for hook in HOOKS.values()))

    theirs.reset_hooks()
    theirs.add_hook(wanted, forward, "fwd")
    theirs.add_hook(wanted, backward, "bwd")
    metric(theirs(pairs.corrupted)).backward()
    theirs.reset_hooks()
    names = {site: [f"blocks.{layer}.hook_{hook}" for layer in range(LAYERS)] for site, hook in HOOKS.items()}
    return {
        site: torch.stack([((clean[name].detach() - values[name]) * slopes[name]).sum((0, 2)) for name in by_layer])
        for site, by_layer in names.items()
    }


if __name__ == "__main__":
    main()
