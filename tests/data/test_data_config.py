import subprocess
import sys
from pathlib import Path

import pytest

from assay.data import DataConfig
from assay.data.corpora import corpora
from assay.data.order import orders
from assay.data.quality import qualities
from assay.data.tokenizers import tokenizers
from assay.errors import UserError


@pytest.mark.parametrize(
    ("written", "table"),
    [
        ("text:/a/b.txt", {"name": "text", "path": "/a/b.txt"}),
        ("text:C:/b.txt", {"name": "text", "path": "C:/b.txt"}),
        ("hf:owner/name:config", {"name": "hf", "dataset": "owner/name:config"}),
        ({"name": "hf:owner/name", "field": "body"}, {"name": "hf", "dataset": "owner/name", "field": "body"}),
        ({"name": "text:a", "path": "b"}, {"name": "text", "path": "b"}),
    ],
)
def test_a_corpus_with_its_argument_is_the_table(written, table):
    config = DataConfig.parse({"corpus": written})
    assert config == DataConfig.parse({"corpus": table})
    assert config.dump()["corpus"] == table
    assert DataConfig.parse(config.dump()) == config


def test_a_tokenizer_with_its_argument_is_the_table():
    assert DataConfig.parse({"tokenizer": "bpe:8192"}).dump()["tokenizer"] == {"name": "bpe", "vocab_size": 8192}
    assert DataConfig.parse({"tokenizer": "hf:a/b"}).dump()["tokenizer"] == {"name": "hf", "folder": "a/b"}
    assert DataConfig.parse({"tokenizer": "bpe"}).dump()["tokenizer"] == "bpe"


def test_defaults_survive_a_round_trip():
    assert DataConfig().dump() == {
        "corpus": "python-stdlib",
        "order": "shuffled",
        "tokenizer": "bytes",
        "sequence_length": 256,
        "batch_size": 16,
        "validation": 0.05,
        "eval_bytes": 65536,
    }
    assert DataConfig.parse(DataConfig().dump()) == DataConfig()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"corpus": "txt:a"},
            "corpus: unknown corpus 'txt'; nearest: text (they are written hf:DATASET, mixture, python-stdlib",
        ),
        ({"corpus": "text"}, "corpus: corpus 'text' needs its path: write 'text:PATH'"),
        ({"corpus": "text:"}, "corpus: corpus 'text' needs its path: write 'text:PATH'"),
        ({"corpus": "python-stdlib:3"}, "corpus: corpus 'python-stdlib' takes no argument: write 'python-stdlib'"),
        ({"corpus": 3}, "corpus: a corpus is a name, or a table with 'name' and its options, not 3"),
        ({"tokenizer": "bite"}, "tokenizer: unknown tokenizer 'bite'; nearest: bytes"),
        (
            {"tokenizer": "bpe:many"},
            "tokenizer: tokenizer 'bpe', option vocab_size='many': input should be a valid int",
        ),
        ({"tokenizer": "hf"}, "tokenizer: tokenizer 'hf' needs its folder: write 'hf:FOLDER'"),
        ({"tokenizer": {"name": "bpe", "size": 3}}, "tokenizer: tokenizer 'bpe' has no option 'size'"),
        ({"sequence_length": 0}, "sequence_length=0: input should be greater than 0"),
        ({"batch_size": 0}, "batch_size=0: input should be greater than 0"),
        ({"validation": 0}, "validation=0: input should be greater than 0"),
        ({"validation": 0.5}, "validation=0.5: input should be less than 0.5"),
        ({"eval_bytes": 3}, "eval_bytes=3: input should be greater than or equal to 4"),
        ({"corpora": "x"}, "unknown field 'corpora'; nearest: corpus"),
    ],
)
def test_mistakes_are_one_line(data, message):
    with pytest.raises(UserError) as caught:
        DataConfig.parse(data)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_page_names_all_there_is():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert [
        name for registry in (corpora, tokenizers, orders, qualities) for name in registry if f"`{name}" not in page
    ] == []


def test_the_configuration_needs_no_heavy_import():
    heavy = "{'torch', 'transformers', 'tokenizers', 'datasets'}"
    code = "import sys, assay.data; assay.data.DataConfig.parse({'tokenizer': 'bpe', 'corpus': 'hf:a'}); "
    code += f"print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
