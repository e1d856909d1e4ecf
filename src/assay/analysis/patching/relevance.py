"""Relevance: a backward pass by the rules of layer-wise relevance propagation, with autograd.

A rule leaves a part's value as it is and replaces its derivative by that of a simpler function, in which what stands
in brackets is held constant:

    norm         y = γ ⊙ (x − mean(x)) · [1 / σ] + β        LayerNorm; without mean and β RMSNorm
    activation   y = x · [act(x) / x]                       GELU, SiLU, ...; ReLU's derivative is this already
    product      y = p/2 + [p/2],  p = a ⊙ b                gated MLPs; each factor gets half
    attention    y = [softmax(q kᵀ)] v                      relevance through values only

Linear maps and sums keep their derivative. For a network without biases, all four together conserve relevance: the
sum of h · ∂M/∂h over the residual stream is the same before every layer, M itself if M is linear in the logits.

The parts are found while the network runs: norms and activations by their modules' classes, or as functions of torch;
products wherever two signals of one shape are multiplied. A bracket act(x) / x is (act(x) / x'), x' = x ± 1e-6 away
from 0, in float32.

Rezaei Jafari, Eberle, Khakzar, Nanda, 2025, arXiv:2508.21258; Ali et al., 2022 (norm, attention).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from assay.errors import UserError, unknown

RULES = ("norm", "activation", "product", "attention")
DEFAULT_RULES = ("norm", "activation", "product")
STABILISER = 1e-6

SCALES = frozenset({"rsqrt", "sqrt", "std", "norm", "vector_norm", "reciprocal"})
ACTIVATIONS = frozenset(
    {"gelu", "silu", "relu", "mish", "hardswish", "leaky_relu", "relu6", "elu", "selu", "celu", "tanh", "softsign"}
)
NO_RULE = frozenset(
    {"sigmoid", "hardsigmoid", "softplus", "logsigmoid", "exp", "expm1", "log", "log1p", "glu", "prod", "cumprod"}
    | {"sigmoid_", "tanh_", "relu_", "pow_", "exp_", "normalize", "group_norm", "batch_norm"}
)
OF_TWO = frozenset({"div", "true_divide", "div_", "mul_"})


@contextmanager
def relevance(model: nn.Module, rules: Iterable[str] = DEFAULT_RULES) -> Iterator[None]:
    """While it lasts, passes of ``model`` have the same values as ever and gradients by ``rules``.

    Parameters must take no gradients. Raises ``UserError`` for an unknown rule and, while the model runs, for a part
    whose kind of rule is chosen but has none for it: an activation that is not 0 at 0, a norm whose gain depends on
    its input, a product of signals of different shapes, a function such as exp.
    """
    chosen = frozenset(rules)
    check_rules(chosen)
    if not chosen:
        yield
        return
    mode = _Rules(chosen)
    with ExitStack() as stack:
        for module in model.modules():
            if is_norm(module) or is_activation(module):
                before, after = (mode.enter, mode.leave_norm if is_norm(module) else mode.leave_activation)
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after).remove)
        stack.enter_context(mode)
        yield


def check_rules(rules: Iterable[str]) -> None:
    """Raises ``UserError`` for one that is not among ``RULES``."""
    for rule in sorted(rules):
        if rule not in RULES:
            raise unknown("rule", rule, RULES)


def is_norm(module: nn.Module) -> bool:
    """A LayerNorm, RMSNorm or the like, by the name of its class."""
    return type(module).__name__.endswith(("Norm", "LayerNormalization"))


def is_activation(module: nn.Module) -> bool:
    """An activation function of torch or transformers."""
    known = type(module).__module__ in ("torch.nn.modules.activation", "transformers.activations")
    return known and not isinstance(module, nn.Softmax | nn.GLU | nn.MultiheadAttention)


def activation_rule(x: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """y = act(x) with the derivative act(x) / x'."""
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    away = wide + torch.where(wide < 0, -STABILISER, STABILISER)
    return with_gradient_of(y, x * (y.detach() / away))


def product_rule(p: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """p with half its derivative."""
    return with_gradient_of(p, p / 2)


def layer_norm_rule(
    y: Tensor,
    x: Float[Tensor, "*batch hidden"],
    normalized_shape: Iterable[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "*batch hidden"]:
    """y = layer_norm(x, ...) with the derivative of γ ⊙ (x − mean(x)) / [σ]."""
    dims = tuple(range(-len(tuple(normalized_shape)), 0))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dims, keepdim=True)
    scaled = centred * torch.rsqrt(centred.detach().square().mean(dims, keepdim=True) + eps)
    return with_gradient_of(y, scaled if weight is None else scaled * weight)


def rms_norm_rule(
    y: Tensor,
    x: Float[Tensor, "*batch hidden"],
    normalized_shape: Iterable[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Float[Tensor, "*batch hidden"]:
    """y = rms_norm(x, ...) with the derivative of γ ⊙ x / [rms]."""
    dims = tuple(range(-len(tuple(normalized_shape)), 0))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scaled = wide * torch.rsqrt(wide.detach().square().mean(dims, keepdim=True) + eps)
    return with_gradient_of(y, scaled if weight is None else scaled * weight)


def with_gradient_of(value: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``value``, bit for bit, with the derivative of ``other``."""
    return value.detach() + (other - other.detach()).to(value.dtype)


class _Rules(TorchFunctionMode):
    """Sees every function of torch that the model calls, and knows in which norm or activation it is called."""

    def __init__(self, rules: frozenset[str]) -> None:
        super().__init__()
        self.rules = rules
        self.inside: list[nn.Module] = []
        self.scales = 0

    def enter(self, module: nn.Module, arguments: Any) -> None:
        self.inside.append(module)
        self.scales = 0

    def leave_norm(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if "norm" in self.rules and output.requires_grad and not self.scales:
            raise UserError(f"the norm {type(module).__name__} has no rule: it divides by no scale that is known")
        self.inside.pop()

    def leave_activation(self, module: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
        x = arguments[0]
        if "activation" in self.rules and output.requires_grad:
            with torch.no_grad():
                at_zero = float(module.forward(torch.zeros_like(x)).abs().max())
            if at_zero > STABILISER:
                raise UserError(f"the activation {type(module).__name__} has no rule: it is {at_zero:.3g} at 0")
            output = activation_rule(x, output)
        self.inside.pop()
        return output

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        name = getattr(function, "__name__", "")
        signals = [x for x in (*args, *options.values()) if isinstance(x, Tensor) and x.requires_grad]
        if not signals or (self.inside and is_activation(self.inside[-1])):
            return function(*args, **options)
        if name == "scaled_dot_product_attention" and "attention" in self.rules:
            query, key, *others = args
            return function(query.detach(), key.detach(), *others, **options)
        y = function(*args, **options)
        if name == "softmax":
            return y.detach() if "attention" in self.rules else y
        if name in ("layer_norm", "rms_norm"):
            self.scales += 1
            rule = layer_norm_rule if name == "layer_norm" else rms_norm_rule
            return rule(y, *args, **options) if "norm" in self.rules else y
        power = args[1] if name == "pow" and isinstance(args[1], int | float) else None
        product = name in ("mul", "multiply") and len(signals) == 2
        if self.inside:
            return self._in_norm(name, power, product and signals[0] is not signals[1], y)
        if name in ACTIVATIONS or name == "square" or (power or 0) > 0:
            return activation_rule(args[0], y) if "activation" in self.rules else y
        if product and "product" in self.rules:
            return product_rule(self._same_shape(signals, y))
        if (name in NO_RULE or (name in OF_TWO and len(signals) == 2)) and "activation" in self.rules:
            raise UserError(f"the function {name!r} of a signal has no rule; leave out the rule 'activation'")
        if (name in SCALES or power is not None) and "norm" in self.rules:
            raise UserError(
                f"the function {name!r} of a signal has no rule outside of a norm; leave out the rule 'norm'"
            )
        return y

    def _in_norm(self, name: str, power: float | None, product: bool, y: Any) -> Any:
        if "norm" not in self.rules:
            return y
        if name in SCALES or power in (-0.5, 0.5):
            self.scales += 1
            return y.detach()
        if product or name in ACTIVATIONS | NO_RULE:
            kind = type(self.inside[-1]).__name__
            raise UserError(f"the norm {kind} has no rule: its gain depends on its input; leave out the rule 'norm'")
        return y

    def _same_shape(self, signals: list[Tensor], y: Tensor) -> Tensor:
        if signals[0].shape != signals[1].shape:
            shapes = " and ".join(str(tuple(x.shape)) for x in signals)
            raise UserError(f"a product of signals of the shapes {shapes} has no rule; leave out the rule 'product'")
        return y
