"""Gradient spectra: what one instruction and its response do to the attention weights of each layer.

    L = mean over response tokens of −ln p(token | before),    G_W = ∂L/∂W for W of q, k, v, o in each layer
    nuclear norm     N = Σ sᵢ(G)
    effective rank   E = exp(−Σ pᵢ ln pᵢ), pᵢ = sᵢ / Σ sⱼ
    similarities     cos(G_W[l], G_W[l+1]);  cos(G_qᵀ, G_o) and cos(G_k, G_v) within a layer

Of good data N is lower and E higher. Both also depend on the length of the response: compare equal lengths.
G = BᵀA of the inputs A and output gradients B at the T positions, so its singular values are those of R_B R_Aᵀ, the
triangles of two QR factorizations; no G is formed while T is below its sides, and only one layer's factors are kept.

Li, Li, Li, Zhou, 2025, arXiv:2504.10766. There the q and o gradients are compared without a transpose.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data.reading import decode, read
from assay.data.tokenizers import Tokenizer
from assay.errors import UserError
from assay.measures.spectra import effective_rank, nuclear_norm

PROJECTIONS = ("q", "k", "v", "o")
_ALONE = {
    "q": ("q_proj", "query"),
    "k": ("k_proj", "key"),
    "v": ("v_proj", "value"),
    "o": ("o_proj", "out_proj", "output", "dense", "c_proj"),
}
_FUSED = ("c_attn", "qkv_proj", "query_key_value")
_SMALLEST = 1e-12


class Sample(NamedTuple):
    """Tokens of an instruction and its response, which begins at ``start``."""

    ids: Int[Tensor, " time"]
    start: int


@dataclass(frozen=True)
class GradientSpectra:
    """Means over samples: a row for each layer, a column for each of ``PROJECTIONS``.

    ``adjacent`` has a row for each pair of neighbouring layers, ``same`` the columns q with o and k with v.
    ``scores`` holds N and E of each sample, as means over its layers and projections; ``tokens`` is the mean length
    of the responses. What has no gradient is left out of the means.
    """

    nuclear_norm: Float[np.ndarray, "layers 4"]
    effective_rank: Float[np.ndarray, "layers 4"]
    adjacent: Float[np.ndarray, "pairs 4"]
    same: Float[np.ndarray, "layers 2"]
    scores: Float[np.ndarray, "samples 2"]
    tokens: float


def gradient_spectra(model: nn.Module, samples: Sequence[Sample]) -> GradientSpectra:
    """The spectra of a causal language model's gradients on each sample, on average.

    The model gives logits, or an output that has them. Raises ``UserError`` if there is no sample, one has no
    instruction or response, or the model has no attention whose projections are known.
    """
    if not samples:
        raise UserError("no samples; gradient spectra need at least one instruction with a response")
    attentions = attention_projections(model)
    found = [_spectra(model, attentions, sample) for sample in samples]
    with np.errstate(invalid="ignore"):
        norms, ranks, adjacent, same = (_mean([one[part] for one in found]) for part in range(4))
        scores = np.array([[_mean(one.flatten()) for one in (norm, rank)] for norm, rank, *_ in found])
    tokens = float(np.mean([len(sample.ids) - sample.start for sample in samples]))
    return GradientSpectra(norms, ranks, adjacent, same, scores, tokens)


def read_samples(path: str | Path, tokenizer: Tokenizer, longest: int = 4096) -> list[Sample]:
    """The samples of a JSON-lines file, cut to ``longest`` tokens; those whose response is then gone are left out.

    A line has ``instruction`` (or ``prompt``), perhaps ``input``, and ``output`` (or ``response``, ``completion``).
    The text is instruction, input and response, a newline between; instruction and response are encoded apart.
    Raises ``UserError`` for a line that is something else, by its number.
    """
    text = decode(read(Path(path)))
    if text is None:
        raise UserError(f"{str(path)!r} is no UTF-8 text; give one JSON object a line")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            before, after = _parts(line, f"{path}, line {number}")
            prompt, response = (torch.tensor(tokenizer.encode(part), dtype=torch.long) for part in (before, after))
            found.append(Sample(torch.cat([prompt, response])[:longest], len(prompt)))
    return [sample for sample in found if sample.start < len(sample.ids)]


def _parts(line: str, place: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: no JSON: {error.msg}") from None
    fields = record if isinstance(record, dict) else {}
    asked, answered = (
        next((fields[name] for name in names if isinstance(fields.get(name), str) and fields[name]), None)
        for names in (("instruction", "prompt"), ("output", "response", "completion"))
    )
    if asked is None or answered is None:
        raise UserError(f"{place}: an object with texts 'instruction' and 'output' is needed, both not empty")
    return "\n".join(part for part in (asked, fields.get("input")) if part) + "\n", answered


def cut_to(samples: Sequence[Sample], length: int) -> list[Sample]:
    """The samples with a response of at least ``length`` tokens, cut to that: what makes two sets comparable."""
    return [
        Sample(sample.ids[: sample.start + length], sample.start)
        for sample in samples
        if len(sample.ids) - sample.start >= length
    ]


def _mean(parts: Any) -> np.ndarray:
    """Of what is not NaN, over the first dimension; NaN where nothing is left."""
    table = np.stack(parts)
    some = np.isfinite(table)
    return np.asarray(np.where(some, table, 0).sum(0) / some.sum(0))


class Factors(NamedTuple):
    """G = BᵀA: the gradient of a linear map's weight, from its ``inputs`` A and its outputs' gradients B."""

    outputs: Float[Tensor, "time out"]
    inputs: Float[Tensor, "time in"]

    def singular_values(self) -> Float[Tensor, " rank"]:
        if len(self.outputs) >= min(self.outputs.shape[1], self.inputs.shape[1]):
            return torch.linalg.svdvals(self.outputs.mT @ self.inputs)
        left, right = (torch.linalg.qr(part.mT, mode="r").R for part in self)
        return torch.linalg.svdvals(left @ right.mT)

    def dot(self, other: Factors) -> Float[Tensor, ""]:
        """⟨G, G'⟩ = Σ (B B'ᵀ) ⊙ (A A'ᵀ)."""
        return ((self.outputs @ other.outputs.mT) * (self.inputs @ other.inputs.mT)).sum()

    def cosine(self, other: Factors) -> float:
        return (self.dot(other) / (self.dot(self).sqrt() * other.dot(other).sqrt() + 1e-9)).item()

    def transposed(self) -> Factors:
        return Factors(self.inputs, self.outputs)


class _Layers:
    """What the backward pass leaves behind, from the last layer to the first."""

    def __init__(self, layers: int) -> None:
        self.norms, self.ranks, self.adjacent, self.same = (np.full((layers, n), np.nan) for n in (4, 4, 4, 2))
        self.after: dict[str, tuple[int, Factors]] = {}  # the latest factors of each projection, with their layer

    def add(self, layer: int, projection: str, factors: Factors) -> None:
        column = PROJECTIONS.index(projection)
        singular = factors.singular_values()
        if nuclear_norm(singular) >= _SMALLEST:
            self.norms[layer, column] = nuclear_norm(singular).item()
            self.ranks[layer, column] = effective_rank(singular).item()
        if projection in self.after and self.after[projection][0] == layer + 1:
            self.adjacent[layer, column] = factors.cosine(self.after[projection][1])
        self.after[projection] = (layer, factors)
        for pair, (first, second) in enumerate((("q", "o"), ("k", "v"))):
            if projection in (first, second) and all(self.after.get(p, (-1,))[0] == layer for p in (first, second)):
                one, other = self.after[first][1], self.after[second][1]
                self.same[layer, pair] = other.cosine(one.transposed() if first == "q" else one)


def _spectra(model: nn.Module, attentions: list[_Attention], sample: Sample) -> tuple[np.ndarray, ...]:
    ids, start = sample
    if not 0 < start < len(ids):
        raise UserError(f"a response from token {start} of {len(ids)}; there must be an instruction before it")
    found = _Layers(len(attentions))
    with _tapped(model, attentions, found), torch.enable_grad():
        output: Any = model(ids[None])
        logits = output if isinstance(output, Tensor) else output.logits
        F.cross_entropy(logits[0, start - 1 : -1].float(), ids[start:]).backward()
    return found.norms, found.ranks, found.adjacent[:-1], found.same


@contextmanager
def _tapped(model: nn.Module, attentions: list[_Attention], found: _Layers) -> Iterator[None]:
    """While it lasts, a backward pass reports each projection's factors; it computes no gradient of a parameter."""

    def tap(layer: int, parts: dict[str, Any], module: Any, inputs: Any, output: Tensor) -> None:
        read = inputs[0].detach().flatten(0, -2).float()

        def report(gradient: Tensor) -> None:
            wide = gradient.flatten(0, -2).float()
            for projection, columns in parts.items():
                found.add(layer, projection, Factors(wide[:, columns], read))

        output.register_hook(report)

    training = model.training
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [_embedding(model).register_forward_hook(lambda _, inputs, output: output.requires_grad_())]
    for layer, attention in enumerate(attentions):
        hooks += [module.register_forward_hook(partial(tap, layer, parts)) for module, parts in attention]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
        for parameter in learning:
            parameter.requires_grad_()


_Attention = list[tuple[nn.Module, dict[str, Any]]]
"""The linear maps of an attention, each with the columns of its output that belong to a projection."""


def attention_projections(model: nn.Module) -> list[_Attention]:
    """The q, k, v and o maps of every attention, in order; fused ones (GPT-2, GPT-NeoX, Bloom, Phi-3) cut apart.

    Raises ``UserError`` if no attention has maps by names that are known.
    """
    found: list[_Attention] = []
    for module in model.modules():
        children = dict(module.named_children())
        maps = {p: next((children[n] for n in names if n in children), None) for p, names in _ALONE.items()}
        fused = next((name for name in _FUSED if name in children), None)
        output = maps.pop("o")
        if output is None or (fused is None and None in maps.values()):
            continue
        if fused is not None:
            inputs: _Attention = [(children[fused], _columns(fused, module, children[fused], output))]
        else:
            inputs = [(linear, {p: slice(None)}) for p, linear in maps.items() if linear is not None]
        found.append([*inputs, (output, {"o": slice(None)})])
    if not found:
        names = ", ".join(["q_proj, k_proj, v_proj and o_proj", *_FUSED])
        raise UserError(f"no attention found: its linear maps have none of the names {names}")
    return found


def _columns(name: str, attention: nn.Module, fused: nn.Module, output: nn.Module) -> dict[str, Any]:
    width = _sides(fused)[1]
    if name == "query_key_value":
        config = getattr(attention, "config", None)
        heads: Any = getattr(attention, "num_heads", None) or getattr(config, "num_attention_heads", None)
        if heads is None or width != 3 * _sides(output)[0]:
            raise UserError(
                "the fused query_key_value map is not of three equal parts in each head; it cannot be cut"
            )
        places = torch.arange(width).view(int(heads), 3, -1)
        return {p: places[:, part].flatten() for part, p in enumerate("qkv")}
    queries = _sides(output)[0]
    keys = (width - queries) // 2
    return {"q": slice(queries), "k": slice(queries, queries + keys), "v": slice(queries + keys, None)}


def _sides(linear: nn.Module) -> tuple[int, int]:
    """Inputs and outputs; transformers' ``Conv1D`` keeps the transpose."""
    rows, columns = linear.get_parameter("weight").shape
    return (rows, columns) if type(linear).__name__ == "Conv1D" else (columns, rows)


def _embedding(model: nn.Module) -> nn.Module:
    named: Any = getattr(model, "get_input_embeddings", lambda: None)()
    found: nn.Module | None = named or next(
        (part for part in model.modules() if isinstance(part, nn.Embedding)), None
    )
    if found is None:
        raise UserError("the model has no token embedding; gradient spectra are of language models")
    return found
