"""Opening: any causal language model that transformers knows, as transformers has it.

``loading`` turns the families that assay knows into decoders, which can be changed; here a model of whatever
architecture stays what it is, to be looked into. Weights are read from safetensors or GGUF only; nothing is unpickled
and no code of a checkpoint is run.
"""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from assay.errors import UserError
from assay.models.hugging_face.checkpoint import Checkpoint, read_json
from assay.models.hugging_face.loading import load, locate, one_name_map, quietly
from assay.models.hugging_face.model import AssayForCausalLM


def open_released(
    path: str | Path,
    *,
    gguf_file: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """The causal language model at ``path``, as for ``load`` but of any architecture, in evaluation mode.

    Raises ``UserError`` if there is none, if its weights are missing, left over or of other shapes than its
    configuration says, naming the file or tensor that is wrong.
    """
    from transformers import AutoModelForCausalLM

    place = locate(path, gguf_file)
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "trust_remote_code": False}
    if place.is_file():
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"reading {str(place)!r} needs the package gguf: pip install 'assay[gguf]'")
        with place.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(f"{place}: damaged, or not a GGUF file")
        folder, options = place.parent, options | {"gguf_file": place.name}
    else:
        config = read_json(place / "config.json")
        if "model_type" not in config:
            raise UserError(f"{place / 'config.json'}: no 'model_type' in it, so it is not a model of transformers")
        if config["model_type"] == "assay":
            return AssayForCausalLM.from_decoder(load(place, dtype=dtype, device=device)).eval()
        with Checkpoint(place):
            folder, options = place, options | {"use_safetensors": True, "output_loading_info": True}
            options["ignore_mismatched_sizes"] = True  # they are named below
    try:
        with quietly(), one_name_map() if place.is_file() else nullcontext():
            opened = AutoModelForCausalLM.from_pretrained(folder, **options)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{place}: no causal language model can be read: {reason[:300]}") from error
    model, info = opened if isinstance(opened, tuple) else (opened, dict[str, Any]())
    _check(place, info)
    return nn.Module.to(model, device).eval()


def _check(place: Path, info: dict[str, Any]) -> None:
    """Raises ``UserError`` unless every weight was found, fits and has a place."""
    reasons = {
        "missing_keys": "the weights lack",
        "mismatched_keys": "another shape than the configuration says has",
        "unexpected_keys": "no place in the configured model for",
    }
    for kind, reason in reasons.items():
        found = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in info.get(kind, ()))
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise UserError(f"{place}: {reason} {found[0]!r}{more}")
