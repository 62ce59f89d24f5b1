"""What mteb wants to know of a model, and which results may stand for each other.

Knows nothing of data sets but the digest that stands for one.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mteb.models.model_meta import ModelMeta, ScoringFunction
from torch import nn

from epic_retrieval.checkpoint import BUNDLED_MODEL
from epic_retrieval.encoder import EpicEncoder
from epic_retrieval.linear import Int8Linear, PrepackedLinear
from epic_retrieval.prompt import Mode
from epic_retrieval.storage import digest_of
from epic_retrieval.tasks import Task

# Raised when what is done with texts or scores changes, so that older results are not taken over.
_FORM = 1
_SHORT = 16  # hex digits of a digest in the name of a folder


def model_meta(encoder: EpicEncoder, mode: Mode) -> ModelMeta:
    """An encoder's description for mteb; its revision is the digest of the passage side."""
    checkpoint = encoder.checkpoint
    model = checkpoint.backbone.model
    parameters = _parameters(model)
    if checkpoint.projector is not None:
        parameters += _parameters(checkpoint.projector)
    size = 1 if checkpoint.backbone.precision == "int8" else checkpoint.backbone.dtype.itemsize
    embeddings = next(model.get_input_embeddings().parameters())
    bundled = encoder.name == BUNDLED_MODEL.name
    return ModelMeta(
        loader=None,
        name=organised(encoder.name),
        revision=encoder.passage_fingerprint()[:_SHORT],
        release_date=None,
        languages=["eng-Latn"] if bundled else None,
        n_parameters=parameters,
        n_embedding_parameters=embeddings.numel(),
        memory_usage_mb=round(parameters * size / 2**20, 1),
        max_tokens=checkpoint.config.max_length,
        embed_dim=encoder.dimension,
        license="apache-2.0" if bundled else None,
        open_weights=True if bundled else None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "Transformers", "safetensors"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=True,
        # What the bundled model was trained on stands in its README; of MTEB's sets, one.
        training_datasets={"FEVER"} if bundled else None,
        experiment_kwargs={"mode": mode},
    )


def _parameters(model: nn.Module) -> int:
    """How many; weights that were laid out for a CPU are parameters no more, and counted too."""
    packed = (one for one in model.modules() if isinstance(one, PrepackedLinear | Int8Linear))
    counted = sum(one.numel() for one in model.parameters())
    return counted + sum(one.in_features * one.out_features for one in packed)


def organised(name: str) -> str:
    """A name with an organisation before it, as mteb wants it: `local` where there is none."""
    path = Path(name).expanduser()
    if path.is_dir() or name.count("/") != 1:
        return f"local/{path.resolve().name if path.is_dir() else path.name}"
    return name


def result_key(encoder: EpicEncoder, task: Task, mode: Mode, data: str) -> str:
    """Digest of everything that decides a score: two evaluations share a result if it is equal.

    Args:
        encoder: its weights, tokenizer, template and precision enter.
        task: its instruction enters and, unless the mode is "none", its demonstrations.
        mode: how they do.
        data: the digest or revision of the data set.
    """
    return digest_of(
        {
            "form": _FORM,
            # Passages of a symmetric task are encoded as queries: this is the query side.
            "queries": encoder.passage_fingerprint(replace(task, symmetric=True), mode),
            "passages": encoder.passage_fingerprint(task, mode),
            "precision": encoder.checkpoint.backbone.precision,
            "data": data,
        }
    )


def keyed(meta: ModelMeta, key: str, **settings: str) -> ModelMeta:
    """The same model as an experiment of its own, which mteb keeps in a folder of its own."""
    named: Mapping[str, str] = {**settings, "key": key[:_SHORT]}
    return meta.model_copy(update={"experiment_kwargs": dict(named)})
