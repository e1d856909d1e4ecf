"""One rule per tensor operation: how the relevance of its result falls to its operands.

A rule yields operands with their relevance. Operands that were computed from neither inputs nor parameters get none,
and neither do parameters that an input is multiplied with as a matrix or a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from assay.analysis.dynamic_lrp.recording import Node, Origin, Value

EPSILON = 1e-11
Shares = Iterator[tuple[Value, Tensor]]
Rule = Callable[[Node, Tensor, "Settings"], Shares]


@dataclass(frozen=True)
class Settings:
    linear_gamma: float = 0.0
    convolution_gamma: float = 0.0
    taylor_softmax: bool = False


RULES: dict[str, Rule] = {}
"""By the name of the operation in ATen. Those of ``STRUCTURE`` have none: their own backward is their rule."""

_STRUCTURE = """
    view _unsafe_view reshape alias expand permute transpose t unsqueeze squeeze select slice narrow diagonal unfold
    split unsafe_split split_with_sizes unsafe_split_with_sizes chunk unbind cat stack as_strided movedim view_as
    index index_select gather take scatter scatter_add index_put _unsafe_index index_copy index_add masked_select
    slice_scatter select_scatter diagonal_scatter where masked_fill masked_scatter tril triu diag_embed
    constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d repeat repeat_interleave
    flip roll max min amax amin maximum minimum topk sort max_pool2d_with_indices max_pool3d_with_indices
    adaptive_max_pool2d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d im2col col2im
    upsample_nearest1d upsample_nearest2d pixel_shuffle pixel_unshuffle channel_shuffle
"""
STRUCTURE = frozenset(_STRUCTURE.split())
"""Operations that move, pick or spread elements."""

_IDENTITY = """
    relu gelu silu sigmoid tanh exp expm1 log log1p log2 softplus elu selu celu leaky_relu hardtanh hardswish
    hardsigmoid mish log_sigmoid_forward _prelu_kernel relu6 threshold pow sqrt rsqrt reciprocal square abs neg erf
    sin cos clamp clamp_min clamp_max clone detach lift_fresh _to_copy contiguous native_dropout dropout nan_to_num
    native_layer_norm native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm native_group_norm
    _fused_rms_norm _log_softmax
"""


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@rule(*_IDENTITY.split())
def identity(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    """Functions of one element, and norms: what arrives goes on."""
    yield _carrying(node)[0], relevance


@rule("copy", "fill")
def overwrite(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    source = node.operands()[1]
    yield source, relevance.sum_to_size(source.data.shape)


@rule("overlay")
def overlay(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    """A view of a storage of which another view was written to."""
    before, written = node.arguments
    source = node.options["source"]
    new = source >= 0
    moved = relevance.new_zeros(written.data.numel()).index_add(0, source[new], relevance[new])
    yield before, relevance.masked_fill(new, 0.0)
    yield written, moved.view(written.data.shape)


@rule("add", "sub", "rsub", "lerp")
def summed(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    """a + b: by |a| and |b|."""
    a, b, *rest = node.arguments
    scale = node.options.get("alpha", rest[0] if rest else 1)
    if node.name == "lerp":
        weight = _data(rest[0])
        yield from _split(relevance, [(a, _data(a) * (1 - weight)), (b, _data(b) * weight)])
    elif node.name == "rsub":
        yield from _split(relevance, [(a, _data(a) * scale), (b, _data(b))])
    else:
        yield from _split(relevance, [(a, _data(a)), (b, _data(b) * scale)])


@rule("mul")
def product(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    """a · b: by |a| and |b|."""
    yield from _split(relevance, [(factor, _data(factor)) for factor in node.arguments[:2]])


@rule("div")
def quotient(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    """a / b: by |a| and |1 / b|."""
    a, b = node.arguments[:2]
    yield from _split(relevance, [(a, _data(a)), (b, 1 / _data(b))])


@rule("addcmul", "addcdiv")
def sum_with_product(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    """x + a · b, x + a / b: a sum of x and the product."""
    x, a, b = node.arguments
    factor = _data(b) if node.name == "addcmul" else 1 / _data(b)
    term = _inner(node, _data(a) * factor * node.options.get("value", 1), a, b)
    for value, share in _split(relevance, [(x, _data(x)), (term, term.data)]):
        if value is term:
            yield from _split(share, [(a, _data(a)), (b, factor)])
        else:
            yield value, share


@rule("sum", "mean", "cumsum", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_linear1d", "avg_pool1d")
def weighted_sum(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    """Sums with weights w ≥ 0 that are the operation's own: by w |x|."""
    (x,) = _carrying(node)
    magnitude = (x.data.to(relevance.dtype).abs() + EPSILON).requires_grad_()
    (total,) = _rerun(node, {x: magnitude}, relevance.dtype)
    (share,) = torch.autograd.grad(total, magnitude, relevance / total.detach())
    yield x, magnitude.detach() * share


@rule("linalg_vector_norm", "var", "std")
def spread(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    """Norms and deviations: by |x| along the dimensions that are gone, |x − mean| for deviations."""
    (x,) = _carrying(node)
    norm = node.name == "linalg_vector_norm"
    dims = (node.arguments[2:3] if norm else node.arguments[1:2]) or (node.options.get("dim"),)
    dims = tuple(range(x.data.ndim)) if not dims[0] else tuple(d % x.data.ndim for d in dims[0])
    data = x.data.to(relevance.dtype)
    magnitude = (data if norm else data - data.mean(dims, keepdim=True)).abs() + EPSILON
    total = magnitude.sum(dims, keepdim=True)
    yield x, magnitude / total * relevance.reshape(total.shape)


@rule("mm", "bmm", "mv", "dot", "matmul")
def matrix_product(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    x, w = node.arguments
    if node.name == "mm" and x.origin > w.origin:  # most columns of a vocabulary have no relevance
        live = relevance.any(0)
        w, relevance = Value(w.data[:, live], w.origin), relevance[:, live]
    yield from _bilinear(torch.matmul, x, w, relevance, settings.linear_gamma)


@rule("addmm", "baddbmm", "addmv", "addbmm")
def sum_with_matrix_product(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    """b + x w: a sum of b and the product."""
    bias, x, w = node.arguments
    beta, alpha = node.options.get("beta", 1), node.options.get("alpha", 1)
    multiply = torch.matmul if node.name != "addbmm" else lambda x, w: torch.bmm(x, w).sum(0)
    term = _inner(node, alpha * multiply(_data(x), _data(w)), x, w)
    for value, share in _split(relevance, [(bias, beta * _data(bias)), (term, term.data)]):
        if value is term:
            yield from _bilinear(multiply, x, w, share, settings.linear_gamma)
        else:
            yield value, share


@rule("_grouped_mm")
def grouped_matrix_product(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    """Rows up to each offset by the next matrix, as with experts."""
    x, w, offsets = node.arguments[:3]

    def multiply(x: Tensor, w: Tensor) -> Tensor:
        parts = x.tensor_split(offsets.data[:-1].tolist())
        return torch.cat([part @ matrix for part, matrix in zip(parts, w, strict=True)])

    yield from _bilinear(multiply, x, w, relevance, settings.linear_gamma)


@rule("convolution")
def convolution(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    x, kernel, bias, *rest = node.arguments

    def convolve(x: Tensor, kernel: Tensor) -> Tensor:
        return torch.ops.aten.convolution.default(x, kernel, None, *rest)

    if bias is None:
        yield from _bilinear(convolve, x, kernel, relevance, settings.convolution_gamma)
        return
    term = _inner(node, convolve(x.data, kernel.data), x, kernel)
    offset = Value(bias.data.view(-1, *[1] * (relevance.ndim - 2)), bias.origin)
    for value, share in _split(relevance, [(offset, offset.data), (term, term.data)]):
        if value is term:
            yield from _bilinear(convolve, x, kernel, share, settings.convolution_gamma)
        else:
            yield bias, share.view(bias.data.shape)


@rule("_softmax", "_safe_softmax")
def softmax(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    """p = softmax(x): what arrives goes on; or x (R − p Σ R), the rest staying with p's offset at x."""
    x, dim = node.arguments[:2]
    if not settings.taylor_softmax:
        yield x, relevance
        return
    weight = node.outputs[0].data.to(relevance.dtype)
    logits = x.data.to(relevance.dtype).masked_fill(weight == 0, 0.0)
    yield x, logits * (relevance - weight * relevance.sum(dim, keepdim=True))
    offset = relevance * (1 - logits + (weight * logits).sum(dim, keepdim=True))
    yield Value(offset, Origin.PARAMETER, "softmax"), offset


@rule("embedding")
def embedding(node: Node, relevance: Tensor, settings: Settings) -> Shares:
    """All of a token's features: their sum. The parameter if the tokens are no input, as with learned positions."""
    indices = node.arguments[1]
    if indices.origin is Origin.INPUT:
        yield indices, relevance.sum(-1)
    else:
        yield from backward(node, [relevance])


def backward(node: Node, relevance: Sequence[Tensor | None]) -> Shares:
    """The operation's own backward, applied to the relevance of each of its results."""
    dtype = next(r.dtype for r in relevance if r is not None)
    carrying = list(dict.fromkeys(_carrying(node)))
    carrying = [value for value in carrying if value.data.is_floating_point()] or carrying
    leaves = {value: value.data.to(dtype).requires_grad_() for value in carrying}
    outputs = _rerun(node, leaves, dtype)
    pairs = [(out, r) for out, r in zip(outputs, relevance, strict=True) if r is not None and out.requires_grad]
    if pairs:
        results, given = zip(*pairs, strict=True)
        shares = torch.autograd.grad(results, list(leaves.values()), given, allow_unused=True)
        yield from ((value, share) for value, share in zip(carrying, shares, strict=True) if share is not None)


def _rerun(node: Node, leaves: dict[Value, Tensor], dtype: torch.dtype) -> list[Tensor]:
    def tensor(value: Value) -> Tensor:
        if value in leaves:
            return leaves[value]
        return value.data.to(dtype) if value.data.is_floating_point() else value.data

    with torch.enable_grad():
        arguments, options = tree_map_only(Value, tensor, (node.arguments, node.options))
        return [leaf for leaf in tree_leaves(node.function(*arguments, **options)) if isinstance(leaf, Tensor)]


def _bilinear(
    function: Callable[[Tensor, Tensor], Tensor], x: Value, w: Value, relevance: Tensor, gamma: float
) -> Shares:
    """f(x, w), linear in both: to each element of x by its part of the result; half to each if both carry.

    By the γ rule, parts of the result's own sign count 1 + γ times: (1 + γ/2) f(x, w) ± γ/2 f(|x|, |w|).
    """
    origin = max(x.origin, w.origin)
    carrying = [value for value in (x, w) if value.origin is origin]
    first, second = (value.data.to(relevance.dtype).requires_grad_(value in carrying) for value in (x, w))
    with torch.enable_grad():
        total = function(first, second)
        if gamma and len(carrying) == 1:
            sizes = function(_magnitude(first), _magnitude(second))
            total = (1 + gamma / 2) * total + gamma / 2 * _sign(total.detach()) * sizes
    z = total.detach()
    scaled = relevance / (len(carrying) * z + EPSILON * _sign(z))
    parts = [part for part in (first, second) if part.requires_grad]
    for value, part, gradient in zip(carrying, parts, torch.autograd.grad(total, parts, scaled), strict=True):
        yield value, part.detach() * gradient


def _magnitude(x: Tensor) -> Tensor:
    """|x|, as x times its sign, so that x times the derivative is it again."""
    return x * x.detach().sign()


def _split(relevance: Tensor, terms: Sequence[tuple[Any, Any]]) -> Shares:
    """Elementwise in the ratio of the magnitudes of the terms that carry, which add up to all of it."""
    carrying = [
        (value, magnitude.to(relevance.dtype).abs() + EPSILON)
        for value, magnitude in terms
        if isinstance(value, Value) and value.origin
    ]
    total = sum(magnitude for _, magnitude in carrying)
    for value, magnitude in carrying:
        share = relevance if len(carrying) == 1 else relevance * (magnitude / total)
        yield value, share.sum_to_size(value.data.shape)


def _carrying(node: Node) -> list[Value]:
    return [value for value in node.operands() if value.origin]


def _inner(node: Node, data: Tensor, *operands: Value) -> Value:
    """A result within a fused operation."""
    return Value(data, max(value.origin for value in operands))


def _data(operand: Any) -> Any:
    return operand.data if isinstance(operand, Value) else operand


def _sign(z: Tensor) -> Tensor:
    return torch.where(z < 0, -1.0, 1.0).to(z.dtype)
