"""A tiny teacher: a random BERT with a WordPiece vocabulary, in an importable package."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests.training.samples import ANIMALS, PLACES, VERBS

WORDS = ["the", "near", "by", "of", "people", "valley", "saw", "it", "where", "does", "live", "."]
PIECES = [*WORDS, *ANIMALS, *VERBS, *PLACES, *"0123456789", *"abcdefghijklmnopqrstuvwxyz"]


def write_teacher(root: Path, name: str = "tiny_teacher") -> str:
    """Make the package `name` below `root`, which must be on the import path."""
    folder = root / name / "model"
    folder.mkdir(parents=True)
    (root / name / "__init__.py").write_text("")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[unused1]", "中", "é", "β", *PIECES]
    pieces += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(str(folder))
    torch.manual_seed(3)
    BertModel(
        BertConfig(
            vocab_size=len(pieces),
            hidden_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=80,
        )
    ).save_pretrained(folder)
    return name
