"""Text in, windows of tokens out: the same text in the same order for every arm of a comparison.

config = DataConfig(corpus="text:notes", tokenizer="bpe", sequence_length=512)
data = prepare(config)                                              # from assay.data.windows
tokens = data.batch(step, seed=0, batch_size=16, sequence_length=512)
"""

from assay.data.config import DataConfig

__all__ = ["DataConfig"]
