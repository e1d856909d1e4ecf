"""``import assay`` makes transformers know assay's models, whichever is imported first, and stays light."""

import subprocess
import sys
import textwrap

import pytest
import torch

from assay.models import Decoder, ModelConfig
from assay.models.hugging_face.saving import save

PROGRAMS = {
    "assay first": """
        import importlib.util
        import assay
        importlib.util.find_spec("transformers.models.auto.modeling_auto")  # looks, but does not import
        import torch
        import transformers.models.llama.modeling_llama
    """,
    "transformers first": """
        import torch
        from transformers import AutoModelForCausalLM
        import assay
    """,
    "between configurations and models": """
        import torch
        from transformers import AutoConfig
        import assay
    """,
}
OPEN = """
    from transformers import AutoConfig, AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    assert type(model).__name__ == "AssayForCausalLM"
    assert type(AutoConfig.from_pretrained(FOLDER)).__name__ == "AssayConfig"
    print(model(torch.arange(5)[None]).logits.double().sum().item())
"""


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    decoder = Decoder(ModelConfig.parse({"depth": 1, "vocab_size": 7, "max_length": 8})).eval()
    path = tmp_path_factory.mktemp("saved") / "model"
    save(decoder, path)
    with torch.no_grad():
        return path, decoder(torch.arange(5)[None]).double().sum().item()


@pytest.mark.parametrize("order", PROGRAMS)
def test_transformers_opens_a_saved_model(order, folder):
    path, expected = folder
    program = textwrap.dedent(PROGRAMS[order]) + textwrap.dedent(OPEN).replace("FOLDER", repr(str(path)))
    assert float(run(program)) == pytest.approx(expected, abs=1e-5)


def test_importing_assay_imports_nothing_heavy():
    heavy = ("torch", "transformers", "numpy", "pydantic", "wrapt", "importlib.metadata")
    assert run(f"import assay, sys; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_installing_twice_is_installing_once():
    program = "import assay, sys; before = len(sys.meta_path); assay._transformers_hook.install()"
    assert run(f"{program}; print(len(sys.meta_path) - before)") == "0"
