"""Makes transformers' automatic classes know assay's models, without importing transformers.

``install`` waits for the two modules that hold the tables of configurations and of causal language models, and
adds an entry to each right after it was imported, or at once where it was imported before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from assay.models.hugging_face.config import AssayConfig

    AutoConfig.register(AssayConfig.model_type, AssayConfig, exist_ok=True)


def _register_model() -> None:
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    from assay.models.hugging_face.config import AssayConfig
    from assay.models.hugging_face.model import AssayForCausalLM

    AutoModelForCausalLM.register(AssayConfig, AssayForCausalLM, exist_ok=True)


REGISTRATIONS: Mapping[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
}
"""What is to be done after the import of a module."""


class _Finder:
    """Finds nothing itself: it has the other finders find a module, and adds to the end of its execution."""

    def __init__(self) -> None:
        self.waiting = dict(REGISTRATIONS)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.waiting:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            self.waiting.pop(name, lambda: None)()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Idempotent."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    finder = _Finder()
    for name in [name for name in REGISTRATIONS if name in sys.modules]:
        finder.waiting.pop(name)()
    sys.meta_path.insert(0, finder)
