"""Our way of cutting texts, as a tokenizer that other libraries load: ends added, text as text.

Knows nothing of models and layouts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from epic_retrieval.errors import CheckpointError
from epic_retrieval.prompt import Prompt, Text
from epic_retrieval.storage import write_atomically
from epic_retrieval.tokenization import TextTokenizer, TokenIds, _without_special_tokens

_PROBES = (
    *("Why is it so?", " two  spaces", "(a) 1.5 – née\nnew line", "漢字 🎉", "123"),
    *(f"{letter}n example" for letter in ascii_lowercase),
)


def save_tokenizer(ours: TextTokenizer, folder: Path, length: int, *, split: bool) -> None:
    """Write a tokenizer that gives our ids for prompt and text as one string, ends included.

    Args:
        ours: the tokenizer.
        folder: is there.
        length: most tokens of a string.
        split: special tokens inside a string are text.
    """
    backend = ours.hf.backend_tokenizer
    state: dict[str, Any] = json.loads(backend.to_str())
    # Our own tokenizer drops merges that spell a special token.
    state["model"] = json.loads(_without_special_tokens(backend).to_str())["model"]
    state.update(truncation=None, padding=None)
    for token in state["added_tokens"]:
        token["special"] = True  # what is split is decided for all of them together
    ids = {"bos": ours.bos_id, "eos": ours.eos_id}
    ends = {name: (i, backend.id_to_token(i)) for name, i in ids.items() if i is not None}
    state["post_processor"] = _ends_processor(ends)
    write_atomically(folder / "tokenizer.json", json.dumps(state, ensure_ascii=False).encode())
    settings = {
        # Reads tokenizer.json as it is, in every release of transformers.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": content for name, (_, content) in ends.items()},
        # Padding is masked, whatever token stands there.
        "pad_token": ours.hf.pad_token or ends["eos"][1],
        # On the left, positions and sliding windows would count the padding.
        "padding_side": "right",
        "truncation_side": "right",
        "model_max_length": length,
        "split_special_tokens": split,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / "tokenizer_config.json", text.encode())


def check_tokenizer(
    ours: TextTokenizer, folder: Path, prompts: Mapping[str, Prompt], max_length: int
) -> None:
    """Read a written tokenizer back as any library does, and compare ids.

    Args:
        ours: what it was made of.
        folder: where it lies.
        prompts: to put before texts, by the kind of text.
        max_length: most tokens of a text, as `TextTokenizer.text_ids` counts them.

    Raises:
        CheckpointError: the ids of a text differ.
    """
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    # The last is longer than any limit: cut, and the end token kept.
    texts = [*_PROBES, "word " * max_length]
    for what, prompt in prompts.items():
        start = ours.start_ids(prompt)
        for text, row in zip(texts, ours.text_ids(texts, prompt, max_length), strict=True):
            expected: TokenIds = [*start, *row]
            whole = worded(prompt) + text
            limit = len(start) + max_length
            found = theirs(whole, truncation=True, max_length=limit)["input_ids"]
            if found != expected:
                raise CheckpointError(
                    f"the tokenizer cuts the {what} {text[:20]!r} otherwise when it stands behind"
                    f" its prompt ({found[-8:]}, expected {expected[-8:]}), so"
                    ' sentence-transformers would give other vectors; use layout="epic"'
                )


def worded(prompt: Prompt) -> str:
    """What stands before a text, as one string."""
    return "".join(piece.text for piece in prompt.prefix if isinstance(piece, Text))


def _ends_processor(ends: dict[str, tuple[int, str]]) -> dict[str, Any]:
    """A post-processor that adds the ends after truncation.

    transformers 5 takes no notice of `add_eos_token` in a tokenizer's settings; the end token,
    whose state is the vector, would be missing without a word.
    """

    def special(name: str) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": name, "type_id": 0}}] if name in ends else []

    def text(name: str) -> list[dict[str, Any]]:
        return [{"Sequence": {"id": name, "type_id": 0}}]

    single = [*special("bos"), *text("A"), *special("eos")]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *text("B"), *special("eos")],
        "special_tokens": {
            name: {"id": name, "ids": [token], "tokens": [content]}
            for name, (token, content) in ends.items()
        },
    }
