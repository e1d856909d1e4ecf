"""The subject: what a causal language model consists of, whatever its architecture.

A model of transformers is a stack of layers, each reading the residual stream and writing to it. Which of a layer's
modules is the attention and which the MLP is told by their names; where the stream stands between the two is seen
from what the norm after the attention is given. A decoder of assay says all of that itself.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from assay.diagnostics.attention_weights import Listener as AttentionListener
from assay.diagnostics.attention_weights import listening
from assay.diagnostics.events import LayerStep, Neurons, Output
from assay.errors import UserError
from assay.models import Decoder
from assay.models.hugging_face.model import AssayForCausalLM

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
MLP = re.compile(r"mlp|feed_?forward|ffn|moe", re.IGNORECASE)
NORM = re.compile(r"norm|^ln", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        index: from 0.
        module: the whole layer.
        attention: its attention, None if there is none.
        mlp: its MLP, None if it is not a module of its own.
        down: the last linear map of the MLP, None where there is no single one.
    """

    index: int
    module: nn.Module
    attention: nn.Module | None
    mlp: nn.Module | None
    down: nn.Module | None


class Subject:
    """A model to be diagnosed, in evaluation mode.

    Attributes:
        model: as transformers has it.
        layers: the stack.
        hidden_size: features of the residual stream.
        vocab_size: outputs.
        max_length: tokens that it can take at once, None if there is no limit.
    """

    def __init__(self, model: PreTrainedModel | Decoder) -> None:
        if isinstance(model, Decoder):
            model = AssayForCausalLM.from_decoder(model)
        self.model = model.eval()
        config = model.config.get_text_config()
        self.hidden_size = int(config.hidden_size)
        self.vocab_size = int(config.vocab_size)
        length = getattr(config, "max_position_embeddings", None)
        self.max_length = None if length is None else int(length)
        self.decoder = model.decoder if isinstance(model, AssayForCausalLM) else None
        self.layers = _decoder_layers(self.decoder) if self.decoder is not None else _layers(model)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def head(self) -> nn.Module | None:
        """What turns the last hidden states into logits."""
        return self.decoder.head if self.decoder is not None else self.model.get_output_embeddings()

    def logits(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        return self.model(input_ids=ids, use_cache=False).logits

    def output(self, ids: Int[Tensor, "batch time"]) -> Output:
        """The logits, with the hidden states that they come from."""
        seen: list[Tensor] = []
        head = self.head
        if head is None:
            return Output(self.logits(ids), ids, None)
        hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            return Output(self.logits(ids), ids, seen[-1] if seen else None)
        finally:
            hook.remove()

    def matrices(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The weight matrices of the layers by name."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for layer in self.layers:
            for parameter in layer.module.parameters():
                if parameter.ndim == 2 and min(parameter.shape) > 1:
                    yield names[parameter], parameter

    @contextmanager
    def listening(
        self,
        domain: str = "",
        *,
        attention: AttentionListener | None = None,
        layer: Callable[[LayerStep], None] | None = None,
        neurons: Callable[[Neurons], None] | None = None,
    ) -> Iterator[None]:
        """While it lasts, passes tell these functions what goes on in the layers."""
        with ExitStack() as stack:
            if attention is not None:
                modules = {m: one.index for one in self.layers for m in one.module.modules()}
                stack.enter_context(listening(self.model, modules, domain, attention))
            for one in self.layers:
                if layer is not None:
                    watch = _Watch(one, self.decoder, layer)
                    for handle in watch.hooks():
                        stack.callback(handle.remove)
                if neurons is not None and one.down is not None:
                    hook = _neuron_hook(one.index, neurons)
                    stack.callback(one.down.register_forward_pre_hook(hook).remove)
            yield


def _neuron_hook(index: int, neurons: Callable[[Neurons], None]) -> Callable[..., None]:
    def tell(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        neurons(Neurons(index, inputs[0]))

    return tell


class _Watch:
    """What one layer does to the residual stream, told at its end."""

    def __init__(self, layer: Layer, decoder: Decoder | None, tell: Callable[[LayerStep], None]) -> None:
        self.layer, self.decoder, self.tell = layer, decoder, tell
        self._forget()

    def _forget(self) -> None:
        self.before: Tensor | None = None
        self.middle: Tensor | None = None
        self.attended: Tensor | None = None

    def hooks(self) -> Iterator[Any]:
        module = self.layer.module
        yield module.register_forward_pre_hook(self._begin, with_kwargs=True)
        if self.decoder is not None:
            yield module.get_submodule("mixer").register_forward_hook(self._between)
        elif self.layer.attention is not None:
            yield self.layer.attention.register_forward_hook(self._attended)
            for name, child in module.named_children():
                if child is self.layer.mlp:
                    yield child.register_forward_pre_hook(self._mlp, with_kwargs=True)
                elif NORM.search(name):
                    yield child.register_forward_pre_hook(self._norm)
        yield module.register_forward_hook(self._end)

    def _stream(self, state: Any) -> Tensor:
        found = self.decoder.residual.finish(state) if self.decoder is not None else first_tensor(state)
        return wide(found)

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._forget()
        if self.decoder is not None:
            self.before = self._stream(inputs[1])
        else:
            self.before = self._stream(inputs[0] if inputs else options["hidden_states"])

    def _between(self, module: nn.Module, inputs: Any, state: Any) -> None:
        self.middle = self._stream(state)

    def _attended(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.attended = first_tensor(output)

    def _norm(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.attended is not None and self.middle is None and inputs[0] is not self.attended:
            self.middle = wide(inputs[0])

    def _mlp(self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        if self.attended is not None and self.middle is None:
            self.middle = wide(inputs[0] if inputs else next(iter(options.values())))

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        assert self.before is not None
        before, after = self.before, self._stream(output)
        middle = None if self.middle is None else self.middle.view_as(before)
        attention = mlp = None
        if middle is not None and self._parallel(before, middle):
            assert self.attended is not None
            attention = wide(self.attended)
            mlp = after - before - attention
        elif middle is not None:
            attention, mlp = middle - before, after - middle
        self._forget()
        self.tell(LayerStep(self.layer.index, before, after, attention, mlp))

    def _parallel(self, before: Tensor, middle: Tensor) -> bool:
        """Whether attention and MLP read the same stream: then what comes before the MLP is what comes in."""
        return self.decoder is None and (middle.data_ptr() == before.data_ptr() or torch.equal(middle, before))


def stream_given(inputs: tuple[Any, ...], options: dict[str, Any], subject: Subject) -> Tensor:
    """The residual stream in a layer's arguments. Raises ``UserError`` for one that is more than a tensor."""
    given = inputs[1] if subject.decoder is not None else inputs[0] if inputs else options["hidden_states"]
    if not isinstance(given, Tensor):
        raise UserError("the residual stream of this model is not one tensor, so no layer of it can be skipped")
    return given


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def first_tensor(output: Any) -> Tensor:
    """A module's output, or the first of several."""
    return output if isinstance(output, Tensor) else output[0]


def _decoder_layers(decoder: Decoder) -> list[Layer]:
    return [
        Layer(
            index,
            layer,
            layer.get_submodule("mixer.branch"),
            layer.get_submodule("mlp.branch"),
            last_map(layer.get_submodule("mlp.branch"), decoder.config.hidden_size),
        )
        for index, layer in enumerate(decoder.layers)
    ]


def _layers(model: PreTrainedModel) -> list[Layer]:
    """The stack with the most parameters. Raises ``UserError`` if the model has none."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    if not stacks:
        raise UserError(f"{type(model).__name__} has no stack of layers to look into")
    stack = max(stacks, key=lambda modules: sum(p.numel() for p in modules.parameters()))
    hidden_size = int(model.config.get_text_config().hidden_size)
    return [_layer(index, module, hidden_size) for index, module in enumerate(stack)]


def _layer(index: int, module: nn.Module, hidden_size: int) -> Layer:
    children = {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}
    attention = _first(children, ATTENTION, excluding=NORM)
    mlp = _first(children, MLP, excluding=NORM)
    return Layer(index, module, attention, mlp, last_map(mlp if mlp is not None else module, hidden_size))


def _first(children: dict[str, nn.Module], name: re.Pattern[str], excluding: re.Pattern[str]) -> nn.Module | None:
    fitting = (m for n, m in children.items() if name.search(n) and not excluding.search(n))
    return next(fitting, None)


def last_map(module: nn.Module, hidden_size: int) -> nn.Module | None:
    """The one that writes to the residual stream; None among several experts."""
    if any(isinstance(child, nn.ModuleList) for child in module.modules()):
        return None
    maps = [m for m in module.modules() if isinstance(m, nn.Linear | Conv1D)]
    if not maps or maps[-1].weight.shape[0 if isinstance(maps[-1], nn.Linear) else 1] != hidden_size:
        return None
    return maps[-1]
