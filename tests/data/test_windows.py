import json
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from assay.data import DataConfig
from assay.data.store import About, Tokens
from assay.data.tokenizers.bytes import Bytes
from assay.data.windows import IGNORED, TokenData, bits_per_byte, prepare
from assay.errors import UserError


def data(train=1000, validation="some text"):
    """Training ids 0, 1, 2, ... so that an id is its place; the validation text in bytes."""
    ids = np.array([256, *validation.encode()], np.uint16)
    about = About(70000, 256, len(validation.encode()), train, len(ids))
    return TokenData("made up", Bytes(), Tokens("key", about, np.arange(train, dtype=np.uint32), ids))


def epoch(made, number, *, seed, sequence_length):
    """All windows of an epoch, one per row."""
    windows = made.windows(sequence_length)
    options = {"seed": seed, "batch_size": 1, "sequence_length": sequence_length}
    return torch.cat([made.batch(number * windows + step, **options) for step in range(windows)])


sizes = {"train": st.integers(2, 300), "sequence_length": st.integers(1, 40), "seed": st.integers(0, 2**31 - 1)}


class TestBatch:
    @given(**sizes, number=st.integers(0, 5))
    def test_an_epoch_predicts_each_token_once(self, train, sequence_length, seed, number):
        made = data(train)
        assume(train > sequence_length)
        rows = epoch(made, number, seed=seed, sequence_length=sequence_length)
        assert rows.dtype == torch.int64
        assert rows.shape == (train // sequence_length, sequence_length + 1)
        assert torch.equal((rows[:, 1:] - rows[:, :-1]) % train, torch.ones_like(rows[:, 1:]))
        predicted = rows[:, 1:].flatten().tolist()
        assert len(set(predicted)) == len(predicted) == train - train % sequence_length
        starts, ends = set(rows[:, 0].tolist()), set(rows[:, -1].tolist())
        assert len(starts - ends) == (0 if train % sequence_length == 0 else 1)

    def test_epochs_differ_in_offset_and_order(self):
        made = data(1000)
        epochs = [epoch(made, number, seed=3, sequence_length=50)[:, 0] for number in range(6)]
        assert len({int(starts.min()) % 50 for starts in epochs}) > 3
        orders = {tuple(((starts - starts.min()) // 50).tolist()) for starts in epochs}
        assert len(orders) == 6
        assert tuple(range(20)) not in orders

    def test_seeds_differ(self):
        made = data(1000)
        first, second = (epoch(made, 0, seed=seed, sequence_length=50) for seed in (0, 1))
        assert not torch.equal(first, second)

    @given(**sizes, batch_size=st.integers(1, 50), steps=st.lists(st.integers(0, 200), min_size=1, max_size=5))
    def test_a_batch_is_a_function_of_seed_and_step(self, train, sequence_length, seed, batch_size, steps):
        assume(train > sequence_length)
        options = {"seed": seed, "batch_size": batch_size, "sequence_length": sequence_length}
        forward = {step: data(train).batch(step, **options) for step in steps}
        for step in reversed(steps):
            assert torch.equal(data(train).batch(step, **options), forward[step])

    @given(**sizes, batch_size=st.integers(1, 50))
    def test_batches_are_the_epochs_one_after_the_other(self, train, sequence_length, seed, batch_size):
        made = data(train)
        assume(train > sequence_length)
        options = {"seed": seed, "batch_size": batch_size, "sequence_length": sequence_length}
        batches = torch.cat([made.batch(step, **options) for step in range(4)])
        epochs = [
            epoch(made, number, seed=seed, sequence_length=sequence_length)
            for number in range(math.ceil(4 * batch_size / made.windows(sequence_length)))
        ]
        assert torch.equal(batches, torch.cat(epochs)[: 4 * batch_size])

    @given(batch_size=st.integers(1, 20), world=st.integers(1, 8), step=st.integers(0, 50))
    def test_ranks_share_the_global_batch(self, batch_size, world, step):
        made = data(500)
        options = {"seed": 7, "batch_size": batch_size, "sequence_length": 16}
        whole = made.batch(step, **options)
        shared = torch.empty_like(whole)
        for rank in range(world):
            shared[rank::world] = made.batch(step, **options, rank=rank, world=world)
        assert torch.equal(shared, whole)

    def test_a_known_batch(self):
        """The order of the data belongs to the results that were published with it."""
        rows = data(100).batch(0, seed=0, batch_size=3, sequence_length=10)
        assert rows[:, 0].tolist() == [48, 68, 28]
        assert torch.equal(rows, (rows[:, :1] + torch.arange(11)) % 100)

    def test_the_order_of_an_epoch_is_drawn_once(self, monkeypatch):
        drawn = []
        original = np.random.default_rng
        monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or original(seed))
        made = data(1000)
        for step in range(40):
            made.batch(step, seed=987654, batch_size=2, sequence_length=50)
        assert drawn == [[987654, number] for number in range(4)]

    def test_large_steps(self):
        rows = data(1000).batch(10**12, seed=0, batch_size=4, sequence_length=10)
        assert rows.shape == (4, 11)

    @pytest.mark.parametrize("sequence_length", [100, 101, 5000])
    def test_too_short(self, sequence_length):
        message = (
            rf"corpus 'made up' has 100 training tokens, fewer than one window of {sequence_length + 1}; .* below 100"
        )
        with pytest.raises(UserError, match=message):
            data(100).batch(0, seed=0, batch_size=1, sequence_length=sequence_length)
        assert data(100).batch(0, seed=0, batch_size=1, sequence_length=99).shape == (1, 100)


class TestEvaluation:
    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(1, 40), st.integers(1, 5))
    def test_each_token_is_a_target_once_in_order(self, text, sequence_length, batch_size):
        made = data(validation=text)
        batches = list(made.evaluation(sequence_length, batch_size))
        targets = torch.cat([targets.flatten() for _, targets in batches])
        inputs = torch.cat([inputs.flatten() for inputs, _ in batches])
        counted = targets != IGNORED
        assert bytes(targets[counted].tolist()) == text.encode()
        assert inputs[counted].tolist() == [256, *text.encode()[:-1]]
        assert all(inputs.shape == targets.shape == (batch_size, sequence_length) for inputs, targets in batches[:-1])
        assert counted.sum() == made.eval_bytes
        assert len(targets) - made.eval_bytes < sequence_length

    def test_a_worked_example(self):
        made = data()
        made.validation = np.array([256, 10, 11, 256, 12, 13], np.uint16)
        ((inputs, targets), (last_inputs, last_targets)) = made.evaluation(2, 2)
        assert inputs.tolist() == [[256, 10], [11, 256]]
        assert targets.tolist() == [[10, 11], [IGNORED, 12]]
        assert last_inputs.tolist() == [[12, 256]]
        assert last_targets.tolist() == [[13, IGNORED]]


class TestBitsPerByte:
    def test_of_known_numbers(self):
        assert bits_per_byte(8 * math.log(2), 1) == 8
        assert bits_per_byte(math.log(2), 4) == 0.25

    def test_of_the_uniform_model_of_bytes(self, notes):
        made = prepare(DataConfig.parse({"corpus": f"text:{notes}", "sequence_length": 64, "eval_bytes": 2000}))
        nats = 0.0
        for _, targets in made.evaluation(64, 4):
            logits = torch.zeros(*targets.shape, made.vocab_size, dtype=torch.float64)
            nats += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
        assert bits_per_byte(nats, made.eval_bytes) == pytest.approx(math.log2(257), rel=1e-12)

    def test_one_model_has_one_value_whatever_the_tokenizer(self, notes):
        """A model of independent bytes gives a token the product of its bytes' probabilities."""
        frequency = np.random.default_rng(0).dirichlet(np.ones(256))
        values, lengths = [], []
        for tokenizer in ("bytes", "bpe:300", "bpe:400"):
            made = prepare(
                DataConfig.parse({"corpus": f"text:{notes}", "tokenizer": tokenizer, "sequence_length": 32})
            )
            saved = [bytes_of(made, id) for id in range(made.vocab_size)]
            cost = np.array([-np.log(frequency[list(spelled)]).sum() for spelled in saved])
            targets = torch.cat([targets.flatten() for _, targets in made.evaluation(32, 4)])
            targets = targets[targets != IGNORED].numpy()
            assert sum(len(saved[id]) for id in targets) == made.eval_bytes
            values.append(bits_per_byte(cost[targets].sum(), made.eval_bytes))
            lengths.append(len(targets))
        assert values == pytest.approx([values[0]] * 3, rel=1e-12)
        assert lengths[0] > lengths[1] > lengths[2]


def bytes_of(made, id):
    """The bytes that an id stands for; byte-level BPE spells each as one character."""
    if id == made.separator:
        return b""
    if isinstance(made.tokenizer, Bytes):
        return bytes([id])
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    return bytes(byte_of[character] for character in made.tokenizer._backend.id_to_token(id))


class TestPrepare:
    def test_it_does_all_of_it(self, notes, home):
        config = DataConfig.parse(
            {"corpus": f"text:{notes}", "tokenizer": "bpe:300", "sequence_length": 32, "eval_bytes": 1500}
        )
        made = prepare(config)
        assert (made.vocab_size, made.separator, made.corpus) == (300, 299, f"text:{notes}")
        held_out = made.tokenizer.decode(made.validation)
        assert made.eval_bytes == len(held_out.encode())
        assert 1500 - 4 < made.eval_bytes <= 1500
        whole = "".join(path.read_text() for path in notes.iterdir())
        trained_on = made.tokenizer.decode(made.train)
        assert len(trained_on) > 0.8 * len(whole)
        assert held_out[:200] not in trained_on
        assert (home / "cache" / "tokens" / made.fingerprint).is_dir()

    def test_it_is_the_same_in_a_second_call(self, notes):
        config = DataConfig.parse({"corpus": f"text:{notes}", "tokenizer": "bpe:300"})
        first, second = prepare(config), prepare(config)
        assert first.fingerprint == second.fingerprint
        np.testing.assert_array_equal(first.train, second.train)

    def test_the_way_it_is_cut_is_not_in_the_fingerprint(self, notes):
        made = [
            prepare(DataConfig.parse({"corpus": f"text:{notes}", "sequence_length": length, "batch_size": size}))
            for length, size in ((8, 2), (16, 4))
        ]
        assert made[0].fingerprint == made[1].fingerprint

    def test_arms_with_different_tokenizers_are_evaluated_on_one_text(self, notes):
        made = [
            prepare(DataConfig.parse({"corpus": f"text:{notes}", "tokenizer": tokenizer, "eval_bytes": 1500}))
            for tokenizer in ("bytes", "bpe:300")
        ]
        assert made[0].eval_bytes == made[1].eval_bytes
        assert made[0].tokenizer.decode(made[0].validation) == made[1].tokenizer.decode(made[1].validation)

    def test_a_tokenizer_from_a_folder(self, notes, tmp_path):
        trained = prepare(DataConfig.parse({"corpus": f"text:{notes}", "tokenizer": "bpe:300"}))
        trained.tokenizer.save(tmp_path / "saved")
        opened = prepare(DataConfig.parse({"corpus": f"text:{notes}", "tokenizer": f"hf:{tmp_path / 'saved'}"}))
        np.testing.assert_array_equal(opened.train, trained.train)
        assert (opened.vocab_size, opened.separator) == (trained.vocab_size, trained.separator)

    def test_a_corpus_of_rows(self, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
        (tmp_path / "rows").mkdir()
        texts = [f"row {n} of the table ü" for n in range(200)]
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (tmp_path / "rows" / "train.jsonl").write_text("".join(lines))
        made = prepare(DataConfig.parse({"corpus": f"hf:{tmp_path / 'rows'}", "sequence_length": 16}))
        together = bytes(id % 256 for id in [*made.train.tolist(), *made.validation.tolist()]).split(b"\0")
        assert sorted(text.decode() for text in together[1:]) == sorted(texts)

    def test_too_short(self, tmp_path):
        (tmp_path / "a.txt").write_text("ab\n\ncd\n\n")
        with pytest.raises(UserError, match=r"has 5 training tokens, fewer than one window of 257; .* below 5"):
            prepare(DataConfig.parse({"corpus": f"text:{tmp_path / 'a.txt'}"}))
