"""A tokenizer made from the teacher's: its English word pieces, with our own special tokens.

A small student cannot afford rows for scripts that it never reads, nor learn a vocabulary from a
narrow corpus that covers what it will be asked. camelCase is split before it is lower-cased, which
the teacher does not do. Knows nothing of models.
"""

import json
import string
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers import decoders as tokenizer_decoders
from transformers import PreTrainedTokenizerBase

from epic_retrieval.errors import InputError
from epic_training.tokenizer import BOS, EOS, PAD

UNKNOWN = "[UNK]"
CONTINUED = "##"
_CAMEL_CASE = Regex(r"(?<=[a-z])(?=[A-Z])")
_WRITTEN = set(string.ascii_letters + string.digits + string.punctuation)
# Punctuation, mathematics, currencies, units: single characters that English texts do hold.
_SYMBOLS = frozenset({"Pd", "Pi", "Pf", "Po", "Sc", "Sm", "So"})


def english_pieces(vocabulary: Mapping[str, int]) -> list[str]:
    """The pieces of a WordPiece vocabulary that English text is made of, in its order."""
    ordered = sorted(vocabulary, key=lambda piece: vocabulary[piece])
    return [piece for piece in ordered if _is_english(piece)]


def _is_english(piece: str) -> bool:
    if piece.startswith("[") and piece.endswith("]") and len(piece) > 2:
        return False  # [CLS], [unused17]
    word = piece.removeprefix(CONTINUED) or piece
    if set(word) <= _WRITTEN:
        return True
    is_greek = len(word) == 1 and "GREEK" in unicodedata.name(word, "")
    return is_greek or (len(word) == 1 and unicodedata.category(word) in _SYMBOLS)


def wordpiece_tokenizer(teacher: Path) -> Tokenizer:
    """A tokenizer of the English pieces of the one in folder `teacher`.

    Ids 0, 1, 2 are PAD, BOS, EOS, as in `train_tokenizer`; 3 is what no piece spells.

    Raises:
        InputError: when the teacher's is no WordPiece tokenizer.
    """
    path = teacher / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))["model"]
    if state.get("type") != "WordPiece":
        raise InputError(
            f"{path} is a {state.get('type')} tokenizer; expected WordPiece, as BERT models have"
        )
    pieces = [PAD, BOS, EOS, UNKNOWN, *english_pieces(state["vocab"])]
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=UNKNOWN)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(_CAMEL_CASE, " "),
            normalizers.BertNormalizer(handle_chinese_chars=False, lowercase=True),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizer_decoders.WordPiece(prefix=CONTINUED)
    tokenizer.add_special_tokens([PAD, BOS, EOS])
    return tokenizer


def teacher_ids(tokenizer: Tokenizer, teacher: PreTrainedTokenizerBase) -> list[int]:
    """For each id of `wordpiece_tokenizer`, that of the same piece in the teacher's vocabulary.

    Beginning and end are the teacher's [CLS] and [SEP].
    """
    known = teacher.get_vocab() | {
        PAD: teacher.pad_token_id,
        BOS: teacher.cls_token_id,
        EOS: teacher.sep_token_id,
        UNKNOWN: teacher.unk_token_id,
    }
    return [known[str(tokenizer.id_to_token(i))] for i in range(tokenizer.get_vocab_size())]
