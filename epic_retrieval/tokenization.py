"""From pieces and texts to token ids: beginning and end tokens, truncation, special tokens as text.

Hugging Face tokenizers add or drop beginning and end tokens depending on version and settings, and
turn "</s>" in a user's text into the end token. Here ids are made by a tokenizer that knows no
special tokens; beginning and end are added by us, after truncation.

Knows no model.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from epic_retrieval.errors import CheckpointError, InputError
from epic_retrieval.prompt import Piece, Prompt, Text, Vectors

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

TokenIds = list[int]

_PUNCTUATION_AT_END = re.compile(r"[^\w\s]+\Z")


class TextTokenizer:
    """Token ids for prompts and texts, on top of a fast Hugging Face tokenizer.

    Attributes:
        bos_id: id that starts every sequence, or None.
        eos_id: id that ends every sequence; its hidden state is the embedding.
        hf: the tokenizer that was given, for saving.
    """

    def __init__(self, hf: "PreTrainedTokenizerBase", *, bos_id: int | None, eos_id: int) -> None:
        self.hf = hf
        self.bos_id = bos_id
        self.eos_id = eos_id
        backend = _backend(hf)
        self._special_ids = {
            token.content: index for index, token in backend.get_added_tokens_decoder().items()
        }
        longest_first = sorted(self._special_ids, key=len, reverse=True)
        # Without special tokens: a pattern that never matches.
        self._special = re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")
        self._plain = _without_special_tokens(backend)
        # The same for every query of a template.
        self._kept_suffix_ids = lru_cache(maxsize=16)(self._suffix_ids)
        self._kept_anchor_ids = lru_cache(maxsize=64)(lambda anchor: self._encode([anchor])[0])

    def fingerprint(self) -> str:
        """Hex digest of everything that decides which ids a text gets."""
        backend = json.loads(_backend(self.hf).to_str())
        # Settings of earlier calls, not of the vocabulary; we pass neither.
        backend.pop("truncation"), backend.pop("padding")
        state = json.dumps([backend, self.bos_id, self.eos_id], sort_keys=True)
        return hashlib.sha256(state.encode()).hexdigest()

    def prompt_ids(self, prompt: Prompt) -> list[TokenIds | Vectors]:
        """Ids and vectors of a prompt's prefix, in order, the beginning token first.

        White space at the very end, or else punctuation, is left to the text that follows
        (`text_ids` puts it there), since that is how tokenizers cut: "Query:", " hello", but
        "Query", ":hello".
        """
        start: list[TokenIds | Vectors] = [[self.bos_id]] if self.bos_id is not None else []
        pieces, _ = self._split_open_end(prompt.prefix)
        for is_text, group in groupby(pieces, key=lambda piece: isinstance(piece, Text)):
            if is_text:
                ids = self._markup_ids([piece for piece in group if isinstance(piece, Text)])
                start.append(ids)
            else:
                start += [piece for piece in group if isinstance(piece, Vectors)]
        return start

    def start_ids(self, prompt: Prompt) -> TokenIds:
        """The ids of a prefix without vectors, in one list: what precedes each passage."""
        pieces = self.prompt_ids(prompt)
        return [token for piece in pieces if not isinstance(piece, Vectors) for token in piece]

    def text_ids(self, texts: Sequence[str], prompt: Prompt, max_length: int) -> list[TokenIds]:
        """Ids of texts as they continue a prompt's prefix, suffix and end token included.

        Args:
            texts: texts of users; special tokens in them stay text.
            prompt: what precedes and follows each text.
            max_length: most tokens per text, suffix and end token included. Only the text is cut.

        Raises:
            InputError: for a text without a token, or a `max_length` that leaves none for the text.
        """
        suffix = [*self._kept_suffix_ids(prompt.suffix), self.eos_id]
        room = max_length - len(suffix)
        if room < 1:
            raise InputError(
                f"max_length is {max_length}, but the template's suffix and the end token take"
                f" {len(suffix)} tokens; set it to at least {len(suffix) + 1}"
            )
        pieces, opening = self._split_open_end(prompt.prefix)
        anchor = self._anchor(pieces)
        rows = self._continue(anchor, [opening + text for text in texts])
        for row, text in zip(rows, texts, strict=True):
            if not row:
                raise InputError(f"the tokenizer finds no token in {text!r}; expected some text")
        return [row[:room] + suffix for row in rows]

    def cut(self, text: str, tokens: int) -> str:
        """The beginning of a text that its first `tokens` tokens cover; special tokens are text."""
        [encoding] = self._plain.encode_batch([text], add_special_tokens=False)
        return text if len(encoding.ids) <= tokens else text[: encoding.offsets[tokens - 1][1]]

    def _split_open_end(self, pieces: Sequence[Piece]) -> tuple[tuple[Piece, ...], str]:
        """The pieces without the characters at their end that the text's first token may take."""
        last = pieces[-1] if pieces else None
        if not isinstance(last, Text):
            return tuple(pieces), ""
        open_end = last.text[len(last.text.rstrip()) :]
        if not open_end:
            found = _PUNCTUATION_AT_END.search(self._plain_end(last))
            open_end = found.group() if found else ""
        kept = last.text[: len(last.text) - len(open_end)]
        head = tuple(pieces[:-1])
        return ((*head, Text(kept, last.markup)) if kept else head), open_end

    def _plain_end(self, piece: Text) -> str:
        """What stands behind the last special token of a piece."""
        return self._special.split(piece.text)[-1] if piece.markup else piece.text

    def _anchor(self, pieces: Sequence[Piece]) -> str:
        """The character that a text follows; none behind vectors and special tokens."""
        last = pieces[-1] if pieces else None
        if not isinstance(last, Text):
            return ""
        return self._plain_end(last)[-1:]

    def _continue(self, anchor: str, texts: Sequence[str]) -> list[TokenIds]:
        """Ids of texts as they would be cut right behind `anchor` in one string.

        Where the tokenizer would join the anchor and the text's start in one token, the text is
        tokenised on its own: the anchor's tokens are part of a prefix that all queries share.
        """
        rows: list[TokenIds] = self._encode([anchor + text for text in texts])
        if not anchor:
            return rows
        before = self._kept_anchor_ids(anchor)
        joined = [i for i, row in enumerate(rows) if row[: len(before)] != before]
        for i, row in zip(joined, self._encode([texts[i] for i in joined]), strict=True):
            rows[i] = before + row
        return [row[len(before) :] for row in rows]

    def _markup_ids(self, pieces: Sequence[Text]) -> TokenIds:
        """Ids of adjacent texts as of one string, with the special tokens of markup as such."""
        ids: TokenIds = []
        plain = ""
        for piece in pieces:
            parts = self._special.split(piece.text) if piece.markup else [piece.text]
            for position, part in enumerate(parts):
                if position % 2:
                    ids += self._encode([plain])[0] if plain else []
                    ids.append(self._special_ids[part])
                    plain = ""
                else:
                    plain += part
        return ids + (self._encode([plain])[0] if plain else [])

    def _suffix_ids(self, suffix: str) -> TokenIds:
        """Ids of a suffix behind a word: some tokenizers put a space before what stands alone."""
        plain = self._special.split(suffix)[0]
        [ids] = self._continue("a", [plain])
        return ids + self._markup_ids([Text(suffix[len(plain) :], markup=True)])

    def _encode(self, texts: list[str]) -> list[TokenIds]:
        try:
            return [
                row.ids for row in self._plain.encode_batch_fast(texts, add_special_tokens=False)
            ]
        except (TypeError, UnicodeEncodeError) as error:  # not a str, or a lone surrogate
            raise InputError(
                f"a text cannot be tokenised ({error}); expected str without lone surrogates"
            ) from error


def find_bos_eos(hf: "PreTrainedTokenizerBase") -> tuple[int | None, int]:
    """The ids that start and end a sequence for this tokenizer.

    What its own post-processor adds wins (Qwen3-Embedding ends in <|endoftext|>, not in its
    `eos_token`), then `eos_token`, and `bos_token` where `add_bos_token` asks for it.

    Raises:
        CheckpointError: when it has no end token.
    """
    backend = _backend(hf)
    plain = backend.encode("a", add_special_tokens=False).ids
    added = backend.encode("a", add_special_tokens=True).ids
    extra = len(added) - len(plain)
    starts = next((n for n in range(extra + 1) if added[n : n + len(plain)] == plain), 0)
    bos: int | None = added[0] if starts == 1 else None
    if starts == 0 and getattr(hf, "add_bos_token", False):
        bos = hf.bos_token_id if hf.bos_token_id != hf.eos_token_id else None
    eos = added[-1] if extra - starts == 1 else hf.eos_token_id
    if eos is None:
        raise CheckpointError(
            f"the tokenizer {type(hf).__name__} has no end-of-sequence token; the embedding is the"
            " hidden state at that token, so set tokenizer.eos_token and save it again"
        )
    return bos, int(eos)


def _backend(hf: "PreTrainedTokenizerBase") -> "Tokenizer":
    backend = getattr(hf, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            f"the tokenizer {type(hf).__name__} is not a fast one; save it with"
            " AutoTokenizer.from_pretrained(...).save_pretrained(...) so that it has tokenizer.json"
        )
    return backend  # type: ignore[no-any-return]


def _without_special_tokens(backend: "Tokenizer") -> "Tokenizer":
    from tokenizers import Tokenizer

    state: dict[str, Any] = json.loads(backend.to_str())
    special = {token["content"] for token in state["added_tokens"]}
    state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    merges = state["model"].get("merges")
    if merges:
        # Converted SentencePiece vocabularies can hold merges that spell a special token.
        state["model"]["merges"] = [
            merge
            for merge in merges
            if (merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)) not in special
        ]
    return Tokenizer.from_str(json.dumps(state))
