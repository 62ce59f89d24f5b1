"""Tokenizers with real vocabularies, read in place from the folder of real data."""

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

NAMES = ("gpt2", "qwen2", "llama-sp")


@cache
def vocabulary(folder: Path, name: str) -> PreTrainedTokenizerFast:
    """One of NAMES as transformers or, for llama-sp, Mistral's tokenizer.json would give it."""
    if name == "gpt2":
        return _byte_level(folder / name)
    if name == "qwen2":
        return cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(folder / name))
    return _sentencepiece(folder / name / "tokenizer.model")


def _byte_level(folder: Path) -> PreTrainedTokenizerFast:
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    both = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=both, eos_token=both)


def _sentencepiece(path: Path) -> PreTrainedTokenizerFast:
    """Byte-fallback BPE with Llama's old normalizer, which puts "▁" in front of every text."""
    scores = dict(_pieces(path.read_bytes()))
    vocabulary = {piece: index for index, piece in enumerate(scores)}
    merges = generate_merges(vocabulary, scores)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _pieces(model: bytes) -> Iterator[tuple[str, float]]:
    """Pieces and scores of a SentencePiece model: field 1 of the message, its fields 1 and 2."""
    for number, piece in _fields(model):
        if number == 1:
            values = dict(_fields(piece))
            yield values[1].decode(), struct.unpack("<f", values[2])[0]


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field of a protocol-buffers message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            _, end = _varint(message, at)
        elif tag & 7 == 2:
            length, at = _varint(message, at)
            end = at + length
        else:
            end = at + {1: 8, 5: 4}[tag & 7]
        yield tag >> 3, message[at:end]
        at = end


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
