"""RAPTOR beside Gaussian concept subspaces, its ridge in a teacher-student model, and steering SmolLM2-135M."""

from __future__ import annotations

import ast
import functools
import random
import re
import sysconfig
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from assay.analysis.raptor import last_states, probe_layers, raptor, ridge_path, split, steered
from assay.claims.experiments import experiments
from assay.claims.smollm2 import smollm2
from assay.data.tokenizers import Tokenizer
from assay.training.export import open_model, tokenizer_of

CONCEPTS = (
    (("asyncio", "http", "urllib"), ("statistics.py", "fractions.py", "_pydecimal.py", "random.py")),
    (("email", "mailbox.py", "smtplib.py"), ("xml", "html")),
)
"""Pairs of parts of the standard library that a sentence of documentation may be about."""


@experiments.register("raptor-docstrings")
def raptor_docstrings(seed: int, *, texts: int = 100, members: int = 100) -> dict[str, float]:
    """``ARM.best`` and ``ARM.mean``: test accuracies over every third layer of SmolLM2-135M, means of two concepts.

    A concept is which of two parts of the standard library a sentence of documentation is from, ``texts`` of each.
    ``best`` is of the layer with the highest test accuracy, as the paper counts it. The arms: ``raptor``; ``fixed``,
    the same with C = 1; ``gcs``, the mean vector of ``members`` probes, each of a tenth of the training texts.
    """
    model, tokenizer = opened()
    reached: dict[str, list[list[float]]] = {"raptor": [], "fixed": [], "gcs": []}
    for parts in CONCEPTS:
        chosen = [random.Random(seed).sample(sentences(part), texts) for part in parts]
        states = last_states(model, tokenizer, [*chosen[0], *chosen[1]])[2::3]
        labels = torch.arange(2 * texts) < texts
        reached["raptor"].append([probe.test for probe in probe_layers(states, labels, seed=seed).probes])
        for arm, count in (("fixed", None), ("gcs", members)):
            reached[arm].append([_other(x.double(), labels, seed, count) for x in states])
    found = {f"{arm}.best": sum(map(max, rows)) / len(rows) for arm, rows in reached.items()}
    return found | {f"{arm}.mean": torch.tensor(rows).mean().item() for arm, rows in reached.items()}


def _other(states: Tensor, labels: Bool[Tensor, " texts"], seed: int, members: int | None) -> float:
    """The test accuracy of one probe with C = 1 of all training texts, or of the mean of many of a tenth of them."""
    train, validation, test = split(labels, seed)
    mean, scale = states[train].mean(0), states[train].std(0, correction=0)
    z = (states - mean) / torch.where(scale > 0, scale, 1.0)
    both = torch.cat((train, validation))
    generator = torch.Generator().manual_seed(seed)
    subsets = [both]
    if members is not None:
        kinds = [both[labels[both]], both[~labels[both]]]
        sizes = [max(len(kind) // 10, 1) for kind in kinds]
        subsets = [
            torch.cat([k[torch.randperm(len(k), generator=generator)[:n]] for k, n in zip(kinds, sizes, strict=True)])
            for _ in range(members)
        ]
    fits = [next(ridge_path(z[subset], labels[subset], [1.0])) for subset in subsets]
    weight, bias = torch.stack([u for _, u, _ in fits]).mean(0), sum(c for *_, c in fits) / len(fits)
    return ((z[test] @ weight + bias > 0) == labels[test]).double().mean().item()


@experiments.register("raptor-teacher")
def raptor_teacher(seed: int, *, hidden: int = 200, texts: int = 60, draws: int = 10) -> dict[str, float]:
    """Gaussian states, labels drawn from a logistic teacher of norm 3; few texts for their size.

    ``weak.cosine`` and ``strong.cosine``: between the vectors of two halves of the texts at C = 100 and C = 1e-3.
    ``tuned.accuracy`` and ``fixed.accuracy``: of RAPTOR's choice and of C = 1, exactly, by the angle to the teacher:
    1 − angle / π is how often the two agree.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[float]] = {}
    for draw in range(draws):
        teacher = torch.zeros(hidden, dtype=torch.float64)
        teacher[0] = 3.0
        x = torch.randn(texts, hidden, generator=generator, dtype=torch.float64)
        labels = torch.rand(texts, generator=generator, dtype=torch.float64) < (x @ teacher).sigmoid()
        halves = [
            [u for _, u, _ in ridge_path(x[half], labels[half], [1e-3, 100.0])]
            for half in (slice(None, texts // 2), slice(texts // 2, None))
        ]
        cosines = [torch.cosine_similarity(a, b, 0).item() for a, b in zip(*halves, strict=True)]
        tuned = probe_layers(x[None], labels, seed=seed * draws + draw).probes[0].weight
        ((_, fixed, _),) = ridge_path(x, labels, [1.0])
        values = {"strong.cosine": cosines[0], "weak.cosine": cosines[1]}
        values |= {"tuned.accuracy": agreement(tuned, teacher), "fixed.accuracy": agreement(fixed, teacher)}
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / draws for name, values in found.items()}


def agreement(weight: Float[Tensor, " hidden"], teacher: Float[Tensor, " hidden"]) -> float:
    """How often two linear classifiers without bias agree on isotropic Gaussian states."""
    return 1 - torch.acos(torch.cosine_similarity(weight, teacher, 0)).item() / torch.pi


GOOD = ("delightful", "superb", "charming", "brilliant", "moving", "gripping", "excellent", "beautiful")
BAD = ("dreadful", "awful", "tedious", "clumsy", "boring", "lifeless", "nasty", "ugly")
FORMS = (
    "The film was {} from start to end.",
    "I found the whole story {}.",
    "What a {} piece of work this is!",
    "The acting is {}, and so is the music.",
    "My friends called the play {}.",
    "Critics agree that the book is {}.",
)
PROMPTS = (
    "I went to see the new film yesterday. It was",
    "We had dinner at the hotel. The food was",
    "She moved to a new house, which she finds",
    "The lecture last week was",
    "Our holiday in the mountains was",
    "He told me that his new job is",
)
UNSEEN = ((" wonderful", " great", " good"), (" terrible", " bad", " horrible"))


@experiments.register("raptor-steering")
def raptor_steering(seed: int, *, target: float = 0.8, prompts: int = len(PROMPTS)) -> dict[str, float]:
    """Log-odds of three good against three bad words as the next one, none of them in the texts of the probes.

    ``plain``; ``towards`` and ``away``: steered to the probability ``target`` of praise, and to 1 − ``target``, at
    each layer of SmolLM2-135M whose validation accuracy is above 0.9. Means over the prompts.
    """
    model, tokenizer = opened()
    texts = [[form.format(word) for form in FORMS for word in words] for words in (GOOD, BAD)]
    probes = raptor(model, tokenizer, *texts, seed=seed).above(0.9)
    odds = {"plain": _odds(model, tokenizer, prompts)}
    for arm, goal in (("towards", target), ("away", 1 - target)):
        with steered(model, probes, goal):
            odds[arm] = _odds(model, tokenizer, prompts)
    return odds


@torch.no_grad()
def _odds(model: PreTrainedModel, tokenizer: Tokenizer, prompts: int) -> float:
    good, bad = ([int(tokenizer.encode(word)[0]) for word in words] for words in UNSEEN)
    total = 0.0
    for prompt in PROMPTS[:prompts]:
        ids = torch.tensor([[tokenizer.separator, *tokenizer.encode(prompt)]])
        logits = model(ids).logits[0, -1]
        total += (logits[good].logsumexp(0) - logits[bad].logsumexp(0)).item()
    return total / prompts


@functools.cache
def opened() -> tuple[PreTrainedModel, Tokenizer]:
    """SmolLM2-135M-Instruct and its tokenizer. Raises ``UserError`` without the package that holds the weights."""
    return open_model(smollm2()), tokenizer_of(smollm2())


@functools.cache
def sentences(parts: tuple[str, ...]) -> list[str]:
    """The first sentences, 5 to 30 words long, of the docstrings in parts of the standard library, each once."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for part in parts:
        place = library / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if {"test", "tests", "idlelib"} & set(path.relative_to(library).parts):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    sentence = re.split(r"(?<=[.!?])\s|\n\s*\n", (ast.get_docstring(node) or "").strip())[0]
                    words = sentence.split()
                    if 5 <= len(words) <= 30:
                        found[" ".join(words)] = None
    return list(found)
