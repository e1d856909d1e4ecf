"""Cost of a diagnosis beside a plain forward, and beside caching every activation first and reducing it then.

Contestants take turns on one model and one text: a plain forward; the diagnostics that need forwards only, in one
streaming pass; transformers' own ``output_attentions`` and ``output_hidden_states``; and ``run_with_cache`` of
TransformerLens where it is installed (``pip install --no-deps transformer-lens einops fancy-einsum better-abc
beartype``), both followed by the same reductions: the same diagnostics, told from the cache. Each round gives one
ratio. Memory is the most that the process grew by during a contestant's turn.

Then matrix nuclear norm, matrix entropy and the true nuclear norm of random token states at growing sizes; the paper
(Li et al., 2024, arXiv:2410.10672) reports 8 to 24 times the speed of the entropy.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from support import options
from support.figures import Spread, print_table, write_figures

if TYPE_CHECKING:
    from torch import Tensor

PLAIN, OURS, CACHED, LENS = "plain forward", "assay", "transformers' outputs", "TransformerLens' cache"
SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
USUAL = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "intermediate_size": 1536}


def main() -> None:
    made = options.parser(__doc__)
    made.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    made.add_argument("--length", type=int, default=512, help="tokens in a window")
    made.add_argument("--windows", type=int, default=4, help="windows, all at once in the cache of a contestant")
    made.add_argument("--threads", type=int, default=options.cores(), help="to compute with")
    chosen = made.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.length, chosen.windows = 2, 32, 2
    options.use_threads(chosen.threads)
    passes = measure_passes(chosen)
    sizes = [(32, 64), (64, 128)] if chosen.quick else [(512, 512), (512, 1024), (1024, 2048), (2048, 4096)]
    norms = measure_norms(sizes, 2 if chosen.quick else 5)
    write_figures(
        chosen.json, "diagnose", quick=chosen.quick, settings=vars(chosen) | {"json": None}, **passes, **norms
    )


def measure_passes(chosen: Any) -> dict[str, Any]:
    import torch

    model = build(SMALL if chosen.quick else USUAL, chosen.length)
    ids = torch.randint(0, model.config.vocab_size, (chosen.windows, chosen.length))
    contestants = {PLAIN: plain(model, ids), OURS: streaming(model, ids), CACHED: outputs(model, ids)}
    if importlib.util.find_spec("transformer_lens") is not None:
        contestants[LENS] = lens(model, ids)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    memory: dict[str, list[float]] = {name: [] for name in contestants}
    told: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for turn in range(chosen.rounds + 1):
            for name in list(contestants)[:: 1 if turn % 2 else -1]:
                spent, grown, told[name] = timed(contestants[name])
                if turn:  # the first warms up
                    seconds[name].append(spent)
                    memory[name].append(grown)
    check_same(told)
    rows, results = [], {}
    for name in contestants:
        over = Spread.of([a / b for a, b in zip(seconds[name], seconds[PLAIN], strict=True)])
        against = Spread.of([a / b for a, b in zip(seconds[name], seconds[OURS], strict=True)])
        extra = Spread.of([max(0.0, a - b) / 2**20 for a, b in zip(memory[name], memory[PLAIN], strict=True)])
        rows.append([name, over.show(), against.show(), extra.show(".0f")])
        results[name] = {"over_plain": over, "over_assay": against, "extra_mebibytes": extra}
    columns = ["contestant", "time / plain forward", "time / assay", "memory beyond a plain forward, MiB"]
    print_table("Diagnosis", columns, rows)
    return {"passes": results}


def build(sizes: dict[str, int], length: int) -> Any:
    """A random Llama of SmolLM2's shape."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **sizes,
        num_key_value_heads=sizes["num_attention_heads"] // 3 or 1,
        vocab_size=8192,
        max_position_embeddings=length,
    )
    config.architectures = ["LlamaForCausalLM"]
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def listeners(model: Any) -> tuple[Any, list[Any]]:
    """The diagnostics that need forwards only."""
    from assay.diagnostics import diagnostics
    from assay.diagnostics.subject import Subject

    subject = Subject(model)
    names = [name for name in diagnostics if getattr(diagnostics[name], "cost", "pass") == "pass"]
    return subject, [diagnostics.build(name, subject=subject) for name in names]


def results(found: list[Any]) -> dict[str, float]:
    told = {}
    for one in found:
        result = one.result()
        if result is not None:
            told |= {f"{type(one).__name__}.{name}": value for name, value in result.scalars.items()}
    return told


def plain(model: Any, ids: Tensor) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        model(input_ids=ids, use_cache=False)
        return {}

    return run


def streaming(model: Any, ids: Tensor) -> Callable[[], dict[str, float]]:
    from assay.diagnostics.observing import observe
    from assay.diagnostics.windows import Windows

    windows = Windows(ids, ("text",) * len(ids))

    def run() -> dict[str, float]:
        subject, found = listeners(model)
        observe(subject, windows, found)
        return results(found)

    return run


def tell(found: list[Any], event: str, what: Any) -> None:
    for one in found:
        getattr(one, event)(what)


def attention_of(layer: int, scores: Tensor | None, weights: Tensor, value: Tensor, output: Tensor) -> Any:
    """The event of a cached map of weights."""
    import torch

    from assay.diagnostics.events import Attention

    time = weights.shape[-1]
    largest = weights.amax((-1, -2)) if scores is None else scores.amax((-1, -2))
    received = weights.sum(-2) / torch.arange(time, 0, -1)
    return Attention(layer, "text", largest, torch.special.entr(weights).sum(-1), received, value, output)


def outputs(model: Any, ids: Tensor) -> Callable[[], dict[str, float]]:
    """transformers gives out neither values, nor MLPs' activations, nor what attention adds; the rest is reduced."""
    import torch

    from assay.diagnostics.events import LayerStep, Output

    def run() -> dict[str, float]:
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            out = model(input_ids=ids, use_cache=False, output_attentions=True, output_hidden_states=True)
        finally:
            model.set_attn_implementation(before)
        _, found = listeners(model)
        heads = model.config.num_attention_heads
        nothing = torch.ones(len(ids), heads, ids.shape[1])
        for layer, weights in enumerate(out.attentions):
            tell(found, "on_attention", attention_of(layer, None, weights, nothing, nothing[..., None]))
            step = LayerStep(layer, out.hidden_states[layer], out.hidden_states[layer + 1], None, None)
            tell(found, "on_layer", step)
        tell(found, "on_output", Output(out.logits, ids, out.hidden_states[-1]))
        return {}

    return run


def lens(model: Any, ids: Tensor) -> Callable[[], dict[str, float]]:
    from transformer_lens import TransformerBridge

    from assay.diagnostics.events import LayerStep, Neurons, Output

    eager = type(model)._from_config(model.config, attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        bridge = TransformerBridge.boot_transformers("local", hf_model=eager, tokenizer=tokenizer(folder))

    def run() -> dict[str, float]:
        logits, cache = bridge.run_with_cache(ids)
        _, found = listeners(model)
        for layer in range(model.config.num_hidden_layers):
            at = f"blocks.{layer}."
            weights, scores = cache[at + "attn.hook_pattern"], cache[at + "attn.hook_attn_scores"]
            value = cache[at + "attn.hook_v"].norm(dim=-1).transpose(1, 2)
            output = cache[at + "attn.hook_z"].transpose(1, 2)
            tell(found, "on_attention", attention_of(layer, scores, weights, value, output))
            before, after = cache[at + "hook_resid_pre"], cache[at + "hook_resid_post"]
            step = LayerStep(layer, before, after, cache[at + "hook_attn_out"], cache[at + "hook_mlp_out"])
            tell(found, "on_layer", step)
            tell(found, "on_neurons", Neurons(layer, cache[at + "mlp.hook_post"]))
        tell(found, "on_output", Output(logits, ids, cache["unembed.hook_in"]))
        return results(found)

    return run


def tokenizer(folder: str) -> Any:
    """A tokenizer of a few words, which the bridge asks for and this benchmark has no use for."""
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "<s>": 1}, unk_token="<s>"))
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<s>")
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def check_same(told: dict[str, dict[str, float]]) -> None:
    """That what is compared does the same work."""
    for name, value in told.get(LENS, {}).items():
        ours = told[OURS][name]
        if abs(ours - value) > 2e-2 * max(abs(ours), abs(value), 1e-3):
            sys.exit(f"{name} is {ours} in one pass and {value} from the cache: they do not do the same work")


def timed(contestant: Callable[[], dict[str, float]]) -> tuple[float, float, dict[str, float]]:
    """Seconds, bytes by which the process grew at most, and what was found."""
    from assay.training import environment

    gc.collect()
    environment.reset_peak_memory()
    before = resident()
    start = time.perf_counter()
    told = contestant()
    spent = time.perf_counter() - start
    return spent, environment.peak_memory() - before, told


def resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def measure_norms(sizes: list[tuple[int, int]], rounds: int) -> dict[str, Any]:
    import torch

    from assay.measures.spectra import matrix_entropy, matrix_nuclear_norm, singular_values, unit_rows

    rows, found = [], []
    for length, hidden in sizes:
        states = torch.randn(length, hidden)
        ways: dict[str, Callable[[], Any]] = {
            "ours": lambda states=states: matrix_nuclear_norm(states),  # type: ignore[misc]
            "entropy": lambda states=states: matrix_entropy(states),  # type: ignore[misc]
            "exact": lambda states=states: singular_values(unit_rows(states)).sum(),  # type: ignore[misc]
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
        ratios = {
            name: Spread.of([a / b for a, b in zip(seconds[name], seconds["ours"], strict=True)])
            for name in ("entropy", "exact")
        }
        rows.append([f"{length} x {hidden}", ratios["entropy"].show(".1f"), ratios["exact"].show(".1f")])
        found.append({"tokens": length, "hidden": hidden, **ratios})
    columns = ["states", "matrix entropy / matrix nuclear norm", "true nuclear norm / matrix nuclear norm"]
    print_table("Time of one text's states", columns, rows)
    return {"norms": found}


if __name__ == "__main__":
    main()
