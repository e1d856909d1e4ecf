"""Loading: a folder of transformers, a GGUF file or a name on the Hugging Face Hub becomes a decoder.

Weights are read from safetensors or GGUF only; nothing is unpickled and no code of a checkpoint is run.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from assay.errors import UserError
from assay.models.config import ModelConfig
from assay.models.decoder import Decoder
from assay.models.hugging_face.checkpoint import Checkpoint, read_json
from assay.models.hugging_face.config import AssayConfig
from assay.models.hugging_face.families import FAMILIES, Family


def load(
    path: str | Path,
    *,
    gguf_file: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Decoder:
    """The model at ``path`` as a decoder in evaluation mode.

    ``path`` is a folder with ``config.json`` and safetensors (saved by assay, or of one of ``FAMILIES``), a
    ``.gguf`` file, a folder that holds ``gguf_file``, or a name on the Hub such as ``"org/name"``. Raises
    ``UserError`` if it cannot be read or its family is not known, naming the file or tensor that is wrong.
    """
    place = locate(path, gguf_file)
    if place.is_file():
        config, weights = _read_gguf(place, dtype)
        return _assemble(config, weights, place, dtype, device)
    config = _read_config(place / "config.json")
    with Checkpoint(place) as checkpoint:
        return _assemble(config, checkpoint, place, dtype, device)


def skeleton(config: ModelConfig) -> Decoder:
    """A decoder whose parameters have shapes but no storage, and whose buffers are real."""
    with torch.device("cpu"), init_empty_weights(include_buffers=False):
        return Decoder(config)


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars and warnings, so that an error stays one line."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def one_name_map() -> Iterator[None]:
    """transformers asks for the names in a GGUF file anew at every module; here once, which halves the time."""
    import gguf

    made = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = functools.cache(made)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = made


def locate(path: str | Path, gguf_file: str | None = None) -> Path:
    """The folder, or the GGUF file, that ``load`` reads; a name on the Hub is downloaded.

    Raises ``UserError`` if there is none.
    """
    place = Path(path).expanduser()
    if not place.exists() and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(path)):
        place = _download(str(path), gguf_file)
    if place.is_file() and (place.suffix != ".gguf" or gguf_file is not None):
        raise UserError(f"{str(path)!r} is a file; give a folder, or a .gguf file by itself")
    if not place.exists():
        raise UserError(f"no such folder: {str(path)!r}")
    if gguf_file is not None:
        place /= gguf_file
        if not place.is_file():
            raise UserError(f"no such file: {str(place)!r}")
    return place


def _download(name: str, gguf_file: str | None) -> Path:
    import huggingface_hub

    weights = "model*.safetensors" if gguf_file is None else gguf_file
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.txt", weights]))
    except Exception as error:
        raise UserError(f"no folder {name!r}, and none to be had from the Hub: {_reason(error)}") from error


def _family(model_type: str, where: Path) -> Family:
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(f"{where}: model_type {model_type!r} is not supported; known: {known}")
    return FAMILIES[model_type]


def _read_config(file: Path) -> PreTrainedConfig:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    data = read_json(file)
    model_type = str(data.get("model_type"))
    _family(model_type, file)
    if data.get("quantization_config"):
        raise UserError(f"{file}: the weights are quantized; load the checkpoint that they were made from")
    known = AssayConfig if model_type == AssayConfig.model_type else CONFIG_MAPPING[model_type]
    try:
        return known.from_dict(data)
    except Exception as error:
        raise UserError(f"{file}: {_reason(error)}") from error


def _read_gguf(file: Path, dtype: torch.dtype) -> tuple[PreTrainedConfig, Mapping[str, Tensor]]:
    from transformers import AutoConfig, AutoModelForCausalLM

    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"reading {str(file)!r} needs the package gguf: pip install 'assay[gguf]'")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{file}: damaged, or not a GGUF file")
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        _family(config.model_type, file)
        with quietly(), one_name_map():
            model = AutoModelForCausalLM.from_pretrained(file.parent, config=config, gguf_file=file.name, dtype=dtype)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file}: cannot be read: {_reason(error)}") from error
    return config, model.state_dict()


def _assemble(
    config: PreTrainedConfig,
    weights: Mapping[str, Tensor],
    where: Path,
    dtype: torch.dtype,
    device: str | torch.device,
) -> Decoder:
    """A decoder with these weights. Raises ``UserError`` unless names and shapes are exactly those expected."""
    family = _family(config.model_type, where)
    try:
        decoder = skeleton(ModelConfig.parse(family.translate(config)))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    state, missing, misfits, used = {}, [], [], set()
    for name, expected in decoder.state_dict().items():
        stored, source = family.source(name)
        if stored not in weights and stored.removeprefix(family.prefix) in weights:
            stored = stored.removeprefix(family.prefix)
        if stored not in weights:
            missing.append(stored)
            continue
        used.add(stored)
        raw = weights[stored]
        tensor = source.take(raw) if raw.ndim == expected.ndim else raw
        if tensor.shape != expected.shape or tensor.is_floating_point() != expected.is_floating_point():
            found = f"{tuple(raw.shape)} {str(raw.dtype).removeprefix('torch.')}"
            misfits.append(f"{stored!r} is {found}, which does not fit {name} {tuple(expected.shape)}")
            continue
        state[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
    unexpected = [name for name in weights if name not in used and not re.fullmatch(family.ignored, name)]
    if missing:
        raise UserError(f"{where}: the weights lack {missing[0]!r}{_more(missing)}")
    if misfits:
        raise UserError(f"{where}: {misfits[0]}{_more(misfits)}")
    if unexpected:
        raise UserError(f"{where}: {unexpected[0]!r} has no place in a {config.model_type}{_more(unexpected)}")
    decoder.load_state_dict(state, assign=True)
    return decoder.to(device).eval()


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _reason(error: Exception) -> str:
    """An error's message on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"
