"""Trained models out of run directories, and from there to Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from assay.data.tokenizers import Tokenizer
from assay.data.tokenizers.hugging_face import HuggingFaceTokenizer
from assay.data.windows import prepare
from assay.errors import UserError
from assay.models import Decoder
from assay.models.hugging_face.loading import load as load_released
from assay.models.hugging_face.loading import locate
from assay.models.hugging_face.saving import save
from assay.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel


def load(path: str | Path, **options: Any) -> Decoder:
    """The model of a run directory, of a Hugging Face folder, a GGUF file or a name on the Hub, as a decoder.

    ``RUN/checkpoints/STEP`` is the model that a run kept at a step. ``options`` are ``gguf_file``, ``dtype`` and
    ``device``. Raises ``UserError`` if there is no model that can be read, naming the file or tensor that is wrong.
    """
    if not is_run(path):
        return load_released(path, **options)
    weights = _checkpoint_of(path) / "model.safetensors"
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{str(weights)!r} cannot be read: {' '.join(str(error).split())[:120]}") from None
    model = Decoder(run_of(path).config().model)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    return model.to(device=options.get("device", "cpu"), dtype=options.get("dtype", torch.float32)).eval()


def open_model(path: str | Path, **options: Any) -> PreTrainedModel:
    """The causal language model at ``path``, as transformers has it: of a run, or of any architecture it knows.

    ``path`` and ``options`` are as for ``load``. It is for looking into models; ``load`` gives decoders, which can
    be changed. Raises ``UserError`` if there is no model that can be read, naming the file or tensor that is wrong.
    """
    from assay.models.hugging_face.model import AssayForCausalLM
    from assay.models.hugging_face.opening import open_released

    if is_run(path):
        return AssayForCausalLM.from_decoder(load(path, **options)).eval()
    return open_released(path, **options)


def export(source: str | Path, out: str | Path) -> Path:
    """Write the model of ``source`` (anything that ``load`` reads) as a Hugging Face directory, and return it.

    The tokenizer of a run goes along. Raises ``UserError`` if ``out`` holds something else.
    """
    model = load(source)
    tokenizer = tokenizer_of(source) if is_run(source) else None
    save(model, Path(out), tokenizer)
    return Path(out)


def tokenizer_of(source: str | Path) -> Tokenizer:
    """The tokenizer that comes with a model: of a run, or in its folder or GGUF file.

    Raises ``UserError`` if there is none that can be read.
    """
    if is_run(source):
        return prepare(run_of(source).config().data).tokenizer
    tokenizer = HuggingFaceTokenizer(folder=str(locate(source)))
    tokenizer.separator  # noqa: B018  (reads it)
    return tokenizer


def is_run(path: str | Path) -> bool:
    """Whether ``path`` is the directory of a run that has a checkpoint, or of a checkpoint that a run kept."""
    return run_of(path).config_path.is_file() and _checkpoint_of(path).is_dir()


def run_of(path: str | Path) -> RunDirectory:
    """The directory of the run that ``path`` is, or that kept the checkpoint which ``path`` is."""
    place = Path(path)
    return RunDirectory(place.parent.parent if _is_kept(place) else place)


def _checkpoint_of(path: str | Path) -> Path:
    return Path(path) if _is_kept(Path(path)) else RunDirectory(path).checkpoint_path


def _is_kept(path: Path) -> bool:
    return path.parent == RunDirectory(path.parent.parent).checkpoints_path
