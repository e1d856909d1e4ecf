"""Weights of a folder, read one by one from safetensors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from assay.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of ``model.safetensors``, or of the files that ``model.safetensors.index.json`` names.

    Each look-up reads the tensor anew, into memory of its own. Raises ``UserError`` if there are no such files or
    they are damaged. Use it in a ``with`` block, at whose end the files are closed.
    """

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}
        self._places: dict[str, str]
        if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
            places = read_json(folder / INDEX).get("weight_map")
            if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
                raise UserError(f"{folder / INDEX}: no 'weight_map' in it that says which file holds which tensor")
            self._places = places
        elif (folder / SINGLE).is_file():
            self._places = {}
        else:
            raise UserError(_no_weights(folder))
        self._folder = folder

    def __enter__(self) -> Checkpoint:
        try:
            for file in sorted(set(self._places.values())) or [SINGLE]:
                self._files[file] = self._open(file)
        except BaseException:
            self._stack.close()
            raise
        if not self._places:
            self._places = dict.fromkeys(self._files[SINGLE].keys(), SINGLE)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Tensor:
        file = self._places[name]
        try:
            return self._files[file].get_tensor(name).clone()
        except SafetensorError as error:
            raise UserError(f"{self._folder / file}: cannot read tensor {name!r}: {error}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _open(self, file: str) -> Any:
        path = self._folder / file
        if Path(file).name != file or not path.is_file():
            raise UserError(f"{self._folder / INDEX} names the file {file!r}, which is not in the folder")
        try:
            return self._stack.enter_context(safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise UserError(f"{path}: damaged, or not a safetensors file: {error}") from None
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from None


def read_json(file: Path) -> dict[str, Any]:
    """Raises ``UserError`` if the file cannot be read or does not hold a JSON object."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{str(file.parent)!r} has no {file.name}, so it is not a saved model") from None
    except OSError as error:
        raise UserError(f"cannot read {str(file)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{file}: holds {type(data).__name__} where an object is expected")
    return data


def _no_weights(folder: Path) -> str:
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".pth"})
    if pickled:
        return (
            f"{str(folder)!r} has its weights in {pickled[0]!r}, which only unpickling can read; convert it: open it "
            "with transformers and save_pretrained() it, which writes safetensors"
        )
    return f"{str(folder)!r} has no weights: neither {SINGLE} nor {INDEX}"
