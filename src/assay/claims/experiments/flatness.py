"""Flatness and transfer on a language whose entropy is known: sequences of a hidden Markov model.

A small Llama is trained to almost that entropy, and on at a constant rate. Loss, trace and the accuracy with which a
linear probe of its last hidden states tells the hidden state behind a token are taken twice: when it has just
converged, and much later. Liu, Xie, Li, Ma, 2022, arXiv:2210.14199.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from assay.analysis.flatness import fisher_trace, linear_probe, next_token_loss
from assay.claims.experiments import experiments
from assay.measures.curvature import hessian_trace


class MarkovModel:
    """``states`` hidden ones with random sharp transitions, ``symbols`` seen ones that several states share."""

    def __init__(self, states: int, symbols: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=self.generator, dtype=torch.float64)  # noqa: E731
        self.transitions = (2 * draw(states, states)).softmax(-1)
        self.emissions = (2 * draw(states, symbols)).softmax(-1)

    def sample(self, count: int, length: int) -> tuple[Int[Tensor, "count length"], Int[Tensor, "count length"]]:
        """Symbols and the states behind them, from a uniform first state."""
        state = torch.randint(0, len(self.transitions), (count,), generator=self.generator)
        states, symbols = [], []
        for _ in range(length):
            states.append(state)
            symbols.append(torch.multinomial(self.emissions[state], 1, generator=self.generator)[:, 0])
            state = torch.multinomial(self.transitions[state], 1, generator=self.generator)[:, 0]
        return torch.stack(symbols, 1), torch.stack(states, 1)

    def least_loss(self, symbols: Int[Tensor, "count length"]) -> float:
        """The mean −ln p of the second and later symbols by the forward algorithm: no model has less on average."""
        belief = torch.full((len(symbols), len(self.transitions)), 1 / len(self.transitions), dtype=torch.float64)
        logs = []
        for symbol in symbols.T:
            joint = belief * self.emissions[:, symbol].T
            logs.append(joint.sum(-1).log())
            belief = joint / joint.sum(-1, keepdim=True) @ self.transitions
        return -torch.stack(logs[1:]).mean().item()


@experiments.register("flatness-after-convergence")
def flatness_after_convergence(
    seed: int,
    *,
    early: int = 500,
    steps: int = 2000,
    states: int = 12,
    symbols: int = 20,
    length: int = 16,
    hidden_size: int = 64,
    depth: int = 2,
    batch_size: int = 64,
    lr: float = 1e-3,
    draws: int = 256,
    probed: int = 2000,
) -> dict[str, float]:
    """``early.`` and ``late.``: ``gap`` (loss above the least possible one, in nats), ``trace`` and ``accuracy``;
    ``trace.ratio`` late over early; ``hessian``: Hutchinson's trace of the late loss's Hessian over ``late.trace``.
    """
    language = MarkovModel(states, symbols, seed)
    test, hidden = language.sample(probed, length)
    least = language.least_loss(test)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=symbols,
                hidden_size=hidden_size,
                intermediate_size=4 * hidden_size,
                num_hidden_layers=depth,
                num_attention_heads=4,
                max_position_embeddings=length,
            )
        )
    model.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    found: dict[str, float] = {}
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, step / 100)
        batch, _ = language.sample(batch_size, length)
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        if step in (early, steps):
            when = "early" if step == early else "late"
            trace = fisher_trace(model, test, draws=draws, generator=torch.Generator().manual_seed(seed)).mean
            found |= {
                f"{when}.gap": next_token_loss(model, test) - least,
                f"{when}.trace": trace,
                f"{when}.accuracy": state_accuracy(model, test, hidden),
            }

    def loss() -> Tensor:
        some = test[:draws]
        return F.cross_entropy(model(input_ids=some).logits[:, :-1].flatten(0, 1), some[:, 1:].flatten())

    whole = hessian_trace(loss, list(model.parameters()), probes=32, generator=torch.Generator().manual_seed(seed))
    found["trace.ratio"] = found["late.trace"] / found["early.trace"]
    found["hessian"] = whole.mean / found["late.trace"]
    return found


@torch.no_grad()
def state_accuracy(
    model: LlamaForCausalLM, symbols: Int[Tensor, "count length"], states: Int[Tensor, "count length"]
) -> float:
    """Of a linear probe for the state behind the last symbol; one half of the sequences trains it."""
    features: Float[Tensor, "count hidden"] = model.model(symbols).last_hidden_state[:, -1]
    half = len(symbols) // 2
    return linear_probe(features[:half], states[:half, -1], features[half:], states[half:, -1])
