"""Norms as the linear maps behind them see them: made affine one by one, and folded into the maps.

    real    y = γ ⊙ (x − mean(x)) / σ(x) + β,    σ(x) = √(var(x) + ε)
    fake    y = γ ⊙ (x − mean(x)) / s + β
    W y + b = W′ x + b′,    W′ = W diag(γ / s) (I − 11ᵀ / d),    b′ = b + W β

with s in the place of σ(x). An RMSNorm has σ(x) = rms(x), no mean and no β.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.decoder import Layer, Sublayer
from assay.nn.head.tied import TiedHead
from assay.nn.head.untied import UntiedHead
from assay.nn.norm.layer_norm import LayerNorm
from assay.nn.norm.rms_norm import RMSNorm

Norm = LayerNorm | RMSNorm
NORMS = (LayerNorm, RMSNorm)
BIASES = {"mixer": "qkv_bias", "mlp": "bias", "head": "bias"}
"""The option of a slot's component that gives the maps behind a norm a bias."""
QUERIES_AND_KEYS = (".query", ".key")
HEAD = "head.projection"


def spread(norm: Norm, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
    """What the norm divides a token by: √(var(x) + ε), of an RMSNorm √(mean(x²) + ε); in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if isinstance(norm, LayerNorm):
        wide = wide - wide.mean(-1, keepdim=True)
    return (wide.square().mean(-1) + norm.eps).sqrt()


def fake(norm: Norm, x: Float[Tensor, "*batch hidden"], divisor: float | Tensor) -> Float[Tensor, "*batch hidden"]:
    """The norm with ``divisor`` in the place of the spread: an affine map of x."""
    if isinstance(norm, LayerNorm):
        x = x - x.mean(-1, keepdim=True)
    gain, shift = norm.weight, _shift(norm)
    y = x / divisor if gain is None else x / divisor * gain
    return y if shift is None else y + shift


@torch.no_grad()
def fold(
    norm: Norm, divisor: float, weight: Float[Tensor, "out hidden"], bias: Float[Tensor, " out"] | None
) -> tuple[Float[Tensor, "out hidden"], Float[Tensor, " out"] | None]:
    """The weight and the bias of x ↦ weight · fake(x) + bias, in float64; no bias if there is none to add."""
    wide, gain, shift = weight.double(), norm.weight, _shift(norm)
    folded = wide / divisor if gain is None else wide * (gain.double() / divisor)
    if isinstance(norm, LayerNorm):
        folded = folded - folded.mean(-1, keepdim=True)
    if shift is not None:
        bias = wide @ shift.double() + (0 if bias is None else bias)
    return folded.to(weight), None if bias is None else bias.to(weight)


def _shift(norm: Norm) -> nn.Parameter | None:
    return norm.bias if isinstance(norm, LayerNorm) else None


class Watch(nn.Module):
    """Stands where a norm stood: lets x through, and keeps the running mean of what the norm would divide by.

    The mean starts at the first value that is seen, and moves in training mode only.
    """

    def __init__(self, norm: Norm, momentum: float) -> None:
        super().__init__()
        self.norm = norm
        self.momentum = momentum
        self.mean: Tensor | None = None

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        if self.training:
            with torch.no_grad():
                now = spread(self.norm, x).mean()
                self.mean = now if self.mean is None else self.momentum * self.mean + (1 - self.momentum) * now
        return x


class Site:
    """A norm as some linear maps read it: what they are given is normed on its way in, and multiplied by ``scale``.

    ``readers`` are by their names in the model; a tied head's map is called as an untied one's would be.
    """

    def __init__(self, watch: Watch, readers: Mapping[str, nn.Module], scale: float = 1.0) -> None:
        self.watch, self.readers, self.scale = watch, readers, scale
        self.divisor: float | None = None
        """None while the norm is real."""
        for reader in readers.values():
            reader.register_forward_pre_hook(self._norm)

    @property
    def shifts(self) -> bool:
        """Whether the norm has a β."""
        return _shift(self.watch.norm) is not None

    def freeze(self) -> None:
        """Turn fake, with the running mean of this moment."""
        assert self.watch.mean is not None
        self.divisor = float(self.watch.mean)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A reader's weight and bias with the frozen norm in them."""
        assert self.divisor is not None
        return fold(self.watch.norm, self.divisor, weight * self.scale, bias)

    def _norm(self, reader: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = arguments
        norm = self.watch.norm
        y = norm(x) if self.divisor is None else fake(norm, x, self.divisor)
        return (y if self.scale == 1.0 else y * self.scale, *others)


def open_norms(model: Decoder, ids: Int[Tensor, "batch time"], momentum: float = 0.9) -> list[list[Site]]:
    """Move every norm of ``model`` from the stream to the maps that read it; the logits stay what they were.

    Returns the sites in the order of their removal: MLPs, queries and keys, values (and what else a mixer reads),
    the head. A forward on ``ids`` checks it. Raises ``UserError`` for a model whose norms are of another kind,
    stand elsewhere, or are read by more than linear maps.
    """
    _check_norms(model)
    model.eval()
    with torch.no_grad():
        before = model(ids)
        phases: list[list[Site]] = [[], [], []]
        for index, layer in enumerate(_layers(model)):
            mixing = _readers(f"layers.{index}.mixer.branch", layer.mixer.branch)
            early = {name: reader for name, reader in mixing.items() if name.endswith(QUERIES_AND_KEYS)}
            late = {name: reader for name, reader in mixing.items() if name not in early}
            mixer, mlp = _watch(layer.mixer, momentum), _watch(layer.mlp, momentum)
            readers = _readers(f"layers.{index}.mlp.branch", layer.mlp.branch)
            phases[0].append(Site(mlp, readers, layer.mlp.input_scale))
            phases[1].append(Site(mixer, early, layer.mixer.input_scale))
            phases[2].append(Site(mixer, late, layer.mixer.input_scale))
            layer.mixer.input_scale = layer.mlp.input_scale = 1.0
        model.final_norm = Watch(cast(Norm, model.final_norm), momentum)
        phases.append([Site(model.final_norm, {HEAD: model.head})])
        after = model(ids)
    if not torch.allclose(after, before, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise UserError(
            "norms cannot be folded: what they give is read by more than linear maps; the model's mixers are "
            f"{model.config.mixer.dump()}, its MLPs {model.config.mlp.dump()}"
        )
    return phases


def all_sites(phases: list[list[Site]]) -> list[Site]:
    """One after another."""
    return [site for phase in phases for site in phase]


def normless(model: Decoder, phases: list[list[Site]]) -> ModelConfig:
    """The configuration of ``model`` once its norms are folded. Raises ``UserError`` if a shift finds no bias."""
    config = model.config
    fields = config.dump() | {"norm": "none", "placement": "pre-ln"}
    if config.head.name == "tied":
        fields["head"] = "untied"
    shifted = {
        _slot(name)
        for site in all_sites(phases)
        if site.shifts
        for name in site.readers
        if _map(model, name)[1] is None
    }
    for slot in shifted:
        given = fields[slot] if isinstance(fields[slot], list) else [fields[slot]]
        tables = [{"name": one} if isinstance(one, str) else one for one in given]
        biased = [{**table, BIASES[slot]: True} for table in tables]
        fields[slot] = biased[0] if slot == "head" else biased
    try:
        folded = ModelConfig.parse(fields)
        with torch.device("meta"):
            names = Decoder(folded).state_dict().keys()
        lacking = [f"{name}.bias" for site in all_sites(phases) if site.shifts for name in site.readers]
        if missing := [name for name in lacking if name not in names]:
            raise UserError(f"there is no {missing[0]}")
    except UserError as error:
        raise UserError(f"norms cannot be folded: their shifts find no biases to go into: {error}") from None
    return folded


def fold_norms(model: Decoder, phases: list[list[Site]]) -> Decoder:
    """A decoder without norms that computes what ``model`` does, whose sites are all frozen.

    The head gets a matrix of its own, and maps behind a norm with a shift get biases.
    """
    watches = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Watch))
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(watches)}
    for site in all_sites(phases):
        for name in site.readers:
            weight, bias = site.fold(*_map(model, name))
            state |= {f"{name}.weight": weight} | ({} if bias is None else {f"{name}.bias": bias})
    folded = Decoder(normless(model, phases)).to(model.embedding.weight)
    new_biases = {name: torch.zeros_like(bias) for name, bias in folded.state_dict().items() if name not in state}
    folded.load_state_dict(state | new_biases)
    return folded.eval()


def _watch(sublayer: Sublayer, momentum: float) -> Watch:
    watch = Watch(cast(Norm, sublayer.input_norm), momentum)
    sublayer.input_norm = watch
    return watch


def _check_norms(model: Decoder) -> None:
    sublayers = [sublayer for layer in _layers(model) for sublayer in (layer.mixer, layer.mlp)]
    expected = [*(sublayer.input_norm for sublayer in sublayers), model.final_norm]
    if any(type(norm) not in NORMS for norm in expected):
        raise UserError(
            "norms cannot be folded: a LayerNorm or an RMSNorm has to be before each mixer, each MLP and the head; "
            f"this model has the norm {model.config.norm.dump()!r} in the placement {model.config.placement.dump()!r}"
        )
    known = {id(norm) for norm in expected}
    others = [name for name, module in model.named_modules() if type(module) in NORMS and id(module) not in known]
    if others:
        raise UserError(f"norms cannot be folded: {others[0]!r} is not on the input of a mixer, an MLP or the head")
    if type(model.head) not in (TiedHead, UntiedHead):
        raise UserError(f"norms cannot be folded into the head {model.config.head.name!r}, only into untied or tied")


def _readers(path: str, branch: nn.Module) -> dict[str, nn.Module]:
    """The linear maps that read what a mixer or an MLP is given, by their names in the model."""
    maps = {f"{path}.{name}": branch.get_submodule(name) for name in getattr(branch, "input_maps", ())}
    for name, reader in maps.items():
        if type(reader) is not nn.Linear:
            raise UserError(f"norms cannot be folded into {name!r}, which is no plain linear map")
    return maps


def _layers(model: Decoder) -> list[Layer]:
    return cast("list[Layer]", list(model.layers))


def _map(model: Decoder, name: str) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias of a reader."""
    if name == HEAD and type(model.head) is TiedHead:
        return model.embedding.weight, None
    map = cast(nn.Linear, model.get_submodule(name))
    return map.weight, map.bias


def _slot(name: str) -> str:
    """Of ``layers.0.mlp.branch.up`` it is ``mlp``, of ``head.projection`` it is ``head``."""
    return "head" if name == HEAD else name.split(".")[2]
