"""Training a small byte-level BPE tokenizer for a model that starts from nothing.

Text is lower-cased, camelCase is split and indentation shrinks to one space, which spares a small
vocabulary; the encoder never has to give the text back. Knows nothing of models.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# Words with their leading space, single digits, runs of punctuation, white space.
_WORDS = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
_INDENTATION = Regex(r"[ \t]{2,}")
_CAMEL_CASE = Regex(r"(?<=[a-z])(?=[A-Z])")


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn `vocabulary` byte-level BPE tokens from `texts`; ids 0, 1, 2 are PAD, BOS, EOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Prepend(" "),  # the first word of a text is a word like any other
            normalizers.Replace(_INDENTATION, " "),
            normalizers.Replace(_CAMEL_CASE, " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer in Hugging Face form."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD
    ).save_pretrained(str(folder))
