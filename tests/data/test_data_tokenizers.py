import shutil
import subprocess
import sys

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.data.corpora.text import TextCorpus
from assay.data.split import Split
from assay.data.tokenizers import tokenizers
from assay.data.tokenizers.bpe import BPE
from assay.data.tokenizers.bytes import Bytes, _alphabet
from assay.data.tokenizers.hugging_face import HuggingFaceTokenizer
from assay.errors import AssayError, UserError

texts = st.text(st.characters(exclude_categories=["Cs"]))
SAMPLES = ["", "a", " a  b\n\n\tc ", "héllo 模型 🙂", "<|endoftext|> is text", "\r\n\x00\x7f\u2028", "e\u0301 ﬁ"]


@pytest.fixture
def split(notes):
    return Split(TextCorpus(path=str(notes)), validation=0.05, eval_bytes=1000)


@pytest.fixture(scope="module")
def saved_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    Bytes().save(folder)
    return HuggingFaceTokenizer(folder=str(folder))


def test_names():
    assert tokenizers.names() == ["bpe", "bytes", "hf"]


class TestBytes:
    def test_ids_are_the_bytes(self):
        assert Bytes().encode("aé🙂").tolist() == [0x61, 0xC3, 0xA9, 0xF0, 0x9F, 0x99, 0x82]
        assert (Bytes().vocab_size, Bytes().separator) == (257, 256)

    @given(texts)
    def test_round_trip(self, text):
        assert Bytes().decode(Bytes().encode(text)) == text

    def test_decoding_what_is_no_text(self):
        assert Bytes().decode([256, 0x61, 256, 0xC3, 0x62]) == "a\ufffdb"

    @given(texts)
    def test_the_saved_tokenizer_gives_the_same_ids(self, saved_bytes, text):
        assert saved_bytes.encode(text).tolist() == list(text.encode())
        assert saved_bytes.decode(saved_bytes.encode(text)) == text

    def test_the_saved_tokenizer_has_the_same_vocabulary(self, saved_bytes):
        assert (saved_bytes.vocab_size, saved_bytes.separator) == (257, 256)
        assert saved_bytes.decode([256, 0x61, 256, 0xC3, 0x62]) == "a\ufffdb"

    def test_autotokenizer_opens_it_alone(self, tmp_path):
        from transformers import AutoTokenizer

        Bytes().save(tmp_path / "new")
        opened = AutoTokenizer.from_pretrained(tmp_path / "new", local_files_only=True)
        assert opened("aé").input_ids == [0x61, 0xC3, 0xA9]
        assert opened("a<|endoftext|>").input_ids == [0x61, 256]
        assert (len(opened), opened.eos_token_id) == (257, 256)

    def test_saving_where_it_cannot_be(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(AssayError, match=r"cannot write '.*file/in'"):
            Bytes().save(tmp_path / "file" / "in")


class TestBPE:
    def test_vocabulary(self, split):
        tokenizer = BPE(split, vocab_size=300)
        assert (tokenizer.vocab_size, tokenizer.separator) == (300, 299)
        ids = tokenizer.encode("the stream of the norm grows")
        assert ids.max() < 299
        assert ids.max() >= 256
        assert len(ids) < len("the stream of the norm grows")

    def test_without_merges_it_is_bytes_in_another_order(self, split):
        tokenizer = BPE(split, vocab_size=257)
        ids = [tokenizer.encode(character)[0] for character in map(chr, range(128))]
        assert len(set(ids)) == 128
        for text in SAMPLES:
            assert len(tokenizer.encode(text)) == len(text.encode())

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
    @given(texts)
    def test_round_trip(self, split, text):
        tokenizer = split.__dict__.setdefault("bpe", BPE(split, vocab_size=300))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.separator not in ids

    def test_a_short_text_has_fewer_merges(self, tmp_path):
        (tmp_path / "a.txt").write_text("ab")
        (tmp_path / "b.txt").write_text("abc")
        tokenizer = BPE(Split(TextCorpus(path=str(tmp_path)), validation=0.05, eval_bytes=10))
        assert 257 < tokenizer.vocab_size < 262
        assert tokenizer.separator == tokenizer.vocab_size - 1

    def test_validation_text_is_not_trained_on(self, tmp_path):
        for name in "ab":
            (tmp_path / f"{name}.txt").write_text(name * 50)
        split = Split(TextCorpus(path=str(tmp_path)), validation=0.05, eval_bytes=50)
        (seen,), (unseen,) = split.training(), split.evaluation()
        tokenizer = BPE(split, vocab_size=300)
        assert len(tokenizer.encode(unseen)) == 50
        assert len(tokenizer.encode(seen)) < 25

    def test_another_process_trains_the_same(self, split, notes, home):
        here = BPE(split, vocab_size=400).identity
        shutil.rmtree(home)
        code = (
            "from assay.data.corpora.text import TextCorpus; from assay.data.split import Split\n"
            "from assay.data.tokenizers.bpe import BPE\n"
            f"corpus = TextCorpus(path={str(notes)!r})\n"
            "print(BPE(Split(corpus, validation=0.05, eval_bytes=1000), vocab_size=400).identity)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == here

    def test_it_is_trained_once(self, split, monkeypatch):
        first = BPE(split, vocab_size=300)
        identity = first.identity
        monkeypatch.setattr("assay.data.tokenizers.bpe._train", None)
        assert BPE(split, vocab_size=300).identity == identity
        assert BPE(split, vocab_size=300).encode("the norm").tolist() == first.encode("the norm").tolist()

    @pytest.mark.parametrize("damage", [b"", b"\xff", b"half"])
    def test_a_damaged_cache_is_trained_again(self, split, home, damage):
        identity = BPE(split, vocab_size=300).identity
        (path,) = (home / "cache" / "tokenizers").iterdir()
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if damage == b"half" else damage)
        assert BPE(split, vocab_size=300).identity == identity
        assert path.read_bytes() == whole

    def test_size_and_text_are_part_of_the_identity(self, split, tmp_path):
        (tmp_path / "other.txt").write_text("quite another text\n" * 100)
        other = Split(TextCorpus(path=str(tmp_path)), validation=0.05, eval_bytes=1000)
        made = [BPE(split, vocab_size=300), BPE(split, vocab_size=301), BPE(other, vocab_size=300)]
        assert len({tokenizer.identity for tokenizer in made}) == 3

    def test_too_small(self, split):
        with pytest.raises(UserError, match="vocab_size=256 is below 257, the bytes and a separator"):
            BPE(split, vocab_size=256)

    def test_an_error_of_the_corpus_passes_through(self, notes, monkeypatch):
        split = Split(TextCorpus(path=str(notes)), validation=0.05, eval_bytes=1000)
        assert split.key
        (notes / "05.txt").write_text("changed")
        with pytest.raises(AssayError, match="changed while it was read"):
            BPE(split, vocab_size=300).identity  # noqa: B018

    def test_the_cache_cannot_be_written(self, split, home):
        home.mkdir(exist_ok=True)
        (home / "cache").write_text("a file, not a folder")
        with pytest.raises(AssayError, match=r"cannot write '.*tokenizers/bpe-.*': Not a directory"):
            BPE(split, vocab_size=300).identity  # noqa: B018


class TestHuggingFace:
    @pytest.fixture
    def saved(self, split, tmp_path):
        tokenizer = BPE(split, vocab_size=320)
        tokenizer.save(tmp_path / "saved")
        return tokenizer, tmp_path / "saved"

    def test_what_was_saved_is_what_is_opened(self, saved, split):
        tokenizer, folder = saved
        opened = HuggingFaceTokenizer(folder=str(folder))
        assert (opened.vocab_size, opened.separator) == (320, 319)
        for text in [*split.evaluation(), *SAMPLES]:
            np.testing.assert_array_equal(opened.encode(text), tokenizer.encode(text))
            assert opened.decode(opened.encode(text)) == text == tokenizer.decode(tokenizer.encode(text))
        for mine, theirs in zip(tokenizer.encode_batch(SAMPLES), opened.encode_batch(SAMPLES), strict=True):
            np.testing.assert_array_equal(mine, theirs)

    def test_saving_again_changes_nothing(self, saved, tmp_path):
        _, folder = saved
        HuggingFaceTokenizer(folder=str(folder)).save(tmp_path / "again")
        again = HuggingFaceTokenizer(folder=str(tmp_path / "again"))
        for text in SAMPLES:
            np.testing.assert_array_equal(again.encode(text), HuggingFaceTokenizer(folder=str(folder)).encode(text))

    def test_the_identity_is_that_of_the_files(self, saved, tmp_path):
        _, folder = saved
        identity = HuggingFaceTokenizer(folder=str(folder)).identity
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        (copy / "model.safetensors").write_bytes(b"weights")
        assert HuggingFaceTokenizer(folder=str(copy)).identity == identity
        path = copy / "tokenizer.json"
        path.write_text(path.read_text().replace("ByteLevel", "bytelevel", 1))
        assert HuggingFaceTokenizer(folder=str(copy)).identity != identity

    def test_no_end_of_text(self, saved):
        _, folder = saved
        config = folder / "tokenizer_config.json"
        config.write_text(config.read_text().replace('"eos_token"', '"pad_token"'))
        with pytest.raises(UserError, match=r"tokenizer 'hf:.*saved' has no end-of-text token \(eos_token\)"):
            HuggingFaceTokenizer(folder=str(folder)).separator  # noqa: B018

    def test_no_folder(self, tmp_path):
        with pytest.raises(UserError, match=r"'hf:.*nowhere': there is no such folder; a tokenizer is read from a"):
            HuggingFaceTokenizer(folder=str(tmp_path / "nowhere"))

    @pytest.mark.parametrize("files", [{}, {"tokenizer.json": "{"}, {"tokenizer_config.json": "{}"}])
    def test_no_tokenizer_in_the_folder(self, tmp_path, files):
        (tmp_path / "folder").mkdir()
        for name, content in files.items():
            (tmp_path / "folder" / name).write_text(content)
        with pytest.raises(UserError, match=r"tokenizer 'hf:.*folder' cannot be opened: .") as caught:
            HuggingFaceTokenizer(folder=str(tmp_path / "folder")).encode("a")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"GGUF but no more"])
    def test_a_damaged_gguf_file(self, tmp_path, content):
        file = tmp_path / "model.gguf"
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer 'hf:.*model.gguf' cannot be opened: .") as caught:
            HuggingFaceTokenizer(folder=str(file)).encode("a")
        assert "\n" not in str(caught.value)

    def test_the_tokenizer_in_a_gguf_file(self, tmp_path):
        def write(name, merges):
            tokens = [*_characters(), *(merge.replace(" ", "") for merge in merges), "<|endoftext|>"]
            writer = gguf.GGUFWriter(tmp_path / name, "llama")
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre("default")
            writer.add_token_list(tokens)
            writer.add_token_types([1] * (len(tokens) - 1) + [3])
            writer.add_token_merges(merges)
            writer.add_bos_token_id(len(tokens) - 1)
            writer.add_eos_token_id(len(tokens) - 1)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.close()
            return HuggingFaceTokenizer(folder=str(tmp_path / name))

        tokenizer = write("a.gguf", ["a b", "ab c"])
        assert (tokenizer.vocab_size, tokenizer.separator) == (259, 258)
        assert tokenizer.encode("abcabc").tolist() == [257, 257]
        assert tokenizer.encode("xab").tolist() == [_characters().index("x"), 256]
        assert tokenizer.decode(tokenizer.encode("abcab é")) == "abcab é"
        assert write("b.gguf", ["a b", "ab c"]).identity == tokenizer.identity
        assert write("c.gguf", ["a b", "ab d"]).identity != tokenizer.identity


def _characters():
    return [character for _, character in _alphabet()]
