"""How embedders without `epic_config.json` encode, from what their folders say.

Folders of transformers and of sentence-transformers: Qwen3-Embedding, e5-mistral, bge-en-icl and
their like. Knows nothing of weights.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_retrieval.checkpoint_config import EpicConfig
from epic_retrieval.errors import CheckpointError
from epic_retrieval.prompt import TEMPLATES, Mode, get_template
from epic_retrieval.tokenization import find_bos_eos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def infer_config(folder: Path, hf: "PreTrainedTokenizerBase", template: str | None) -> EpicConfig:
    """How an embedder without `epic_config.json` encodes, from what its folder says."""
    _check_sentence_transformers_layout(folder)
    bos, eos = find_bos_eos(hf)
    name = template or _infer_template(folder, hf)
    if template is None:
        logger.info("%s: taking the prompt template %r", folder.name, name)
    modes: tuple[Mode, ...] = ("text", "none") if name == "bge-en-icl" else ("none",)
    limit = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    return EpicConfig(get_template(name), bos, eos, int(limit or 512), modes)


def _infer_template(folder: Path, hf: "PreTrainedTokenizerBase") -> str:
    if "<instruct>" in hf.get_added_vocab() or "bge-en-icl" in folder.resolve().name:
        return "bge-en-icl"
    prompts = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    query = prompts.get("query") or ""
    for candidate in ("qwen3-embedding", "e5"):
        before = TEMPLATES[candidate].query.split("{query}")[0].split("{instruction}")[1]
        if query.endswith(before):
            return candidate
    return "e5"


def _check_sentence_transformers_layout(folder: Path) -> None:
    if not (folder / "modules.json").is_file():
        return
    modules = read_json(folder / "modules.json")
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise CheckpointError(
            f"{folder} has the sentence-transformers modules {', '.join(kinds)}; supported are"
            " Transformer, Pooling (last token) and Normalize"
        )
    for module, kind in zip(modules, kinds, strict=True):
        if kind != "Pooling":
            continue
        pooling = read_json(folder / module["path"] / "config.json")
        chosen = pooling.get("pooling_mode") or ", ".join(
            key for key, value in pooling.items() if key.startswith("pooling_mode_") and value
        )
        if "lasttoken" not in str(chosen):
            raise CheckpointError(
                f"{folder} pools by {chosen or 'an unknown rule'}; epic-retrieval reads the end"
                " token's state (last-token pooling) and would give wrong vectors"
            )


def read_json(path: Path) -> Any:  # noqa: ANN401 (whatever JSON holds)
    """The content of a JSON file; an empty mapping where there is none.

    Raises:
        CheckpointError: naming the file, when it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
