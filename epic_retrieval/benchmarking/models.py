"""Models to measure: the one named, or a random one of a known shape, also as others load it.

The values of weights do not matter for times, so a random model of the right shape is as good as a
trained one that nobody has here.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_retrieval.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from epic_retrieval.encoder import EpicEncoder

RANDOM = "random:"
# hidden size, inner size, layers, attention heads, key-value heads
SHAPES = {
    "tiny": (32, 48, 2, 4, 2),
    "22m": (512, 1408, 8, 8, 2),
    "qwen2.5-0.5b": (896, 4864, 24, 14, 2),
}
_POSITIONS = 8192
_SEED = 0
# Conditions take turns: a prompt that had to make room would be computed again each time.
_PROMPTS = 512


def open_model(
    name: str | None,
    workspace: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    vocabulary: Path | None = None,
) -> "EpicEncoder":
    """The encoder to measure; its prompts are kept in memory only.

    Args:
        name: a checkpoint folder or hub id, None for the bundled model, or "random:SHAPE" for
            random weights of the Qwen2 family with a random projector.
        workspace: folder for what a random model needs on disk.
        device: as in `EpicEncoder.from_pretrained`.
        dtype: as in `EpicEncoder.from_pretrained`.
        vocabulary: folder of the tokenizer of a random model; None takes the bundled model's.

    Raises:
        InputError: an unknown shape.
        CheckpointError: the model cannot be loaded.
    """
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.prompt_cache import PromptCache

    if name is None or not name.startswith(RANDOM):
        cache = PromptCache(None, _PROMPTS)
        return EpicEncoder.from_pretrained(name, device=device, dtype=dtype, cache=cache)
    shape = name.removeprefix(RANDOM)
    if shape not in SHAPES:
        raise InputError(f"unknown shape {shape!r}; expected one of {', '.join(SHAPES)}")
    folder = _save_random(shape, workspace / shape, vocabulary)
    loaded = EpicEncoder.from_pretrained(
        folder, device=device, dtype=dtype, template="bge-en-icl"
    ).checkpoint
    made = replace(loaded, name=name, config=replace(loaded.config, modes=("epic", "text", "none")))
    return with_projector(EpicEncoder(made, PromptCache(None, _PROMPTS)))


def with_projector(encoder: "EpicEncoder") -> "EpicEncoder":
    """The same encoder, with a random projector where it has none."""
    import torch

    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.projector import Projector

    checkpoint = encoder.checkpoint
    if encoder.reads_vectors:
        return encoder
    torch.manual_seed(_SEED)
    projector = Projector(checkpoint.backbone.dimension).eval()
    projector.scale_to(torch.randn(64, projector.dimension), checkpoint.backbone.embedding_rms())
    projector = projector.to(checkpoint.backbone.device, checkpoint.backbone.dtype)
    return EpicEncoder(replace(checkpoint, projector=projector), encoder.cache)


def with_template(encoder: "EpicEncoder", name: str) -> "EpicEncoder":
    """The same model with another wording, its prompts kept in memory only."""
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.prompt import get_template
    from epic_retrieval.prompt_cache import PromptCache

    checkpoint = encoder.checkpoint
    config = replace(checkpoint.config, template=get_template(name))
    return EpicEncoder(replace(checkpoint, config=config), PromptCache(None))


def parameters_of(encoder: "EpicEncoder") -> int:
    """Number of weights of the language model, token embeddings included."""
    import torch
    from transformers import AutoModel

    # Weights that were laid out for a kernel are no parameters any more; an empty twin has them.
    with torch.device("meta"):
        twin: Any = AutoModel.from_config(encoder.checkpoint.backbone.model.config)
    return sum(one.numel() for one in twin.parameters())


def folder_for_others(encoder: "EpicEncoder", out: Path) -> Path:
    """A folder from which transformers, sentence-transformers and FlagEmbedding load this model.

    Weights are linked, not copied. The tokenizer begins and ends every text as our own does.

    Raises:
        InputError: the weights lie in no folder, or in an adapter's.
    """
    checkpoint = encoder.checkpoint
    if len(checkpoint.folders) != 1:
        raise InputError(
            f"{checkpoint.name} is an adapter or was made in memory, which other libraries cannot"
            " load; merge it with `epic export`, or leave the rivals out"
        )
    out.mkdir(parents=True, exist_ok=True)
    source = checkpoint.folders[0]
    for path in [source / "config.json", *source.glob("*.safetensors*")]:
        target = out / path.name
        if path.name != "projector.safetensors" and not target.exists():
            target.symlink_to(path.resolve())
    tokenizer = checkpoint.tokenizer
    _save_tokenizer(source, out, tokenizer.bos_id, tokenizer.eos_id)
    return out


def _save_random(shape: str, folder: Path, vocabulary: Path | None) -> Path:
    import torch
    from transformers import Qwen2Config, Qwen2Model

    from epic_retrieval.checkpoint import BUNDLED_MODEL
    from epic_retrieval.tokenization import find_bos_eos

    source = vocabulary or BUNDLED_MODEL
    folder.mkdir(parents=True, exist_ok=True)
    hf = _tokenizer(source)
    bos, eos = find_bos_eos(hf)
    _save_tokenizer(source, folder, bos, eos)
    hidden, inner, layers, heads, shared = SHAPES[shape]
    torch.manual_seed(_SEED)
    model = Qwen2Model(
        Qwen2Config(
            vocab_size=len(hf),
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=shared,
            max_position_embeddings=_POSITIONS,
        )
    )
    model.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> Any:  # noqa: ANN401 (AutoTokenizer is not typed)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _save_tokenizer(source: Path, out: Path, bos: int | None, eos: int) -> None:
    """The tokenizer of `source`, adding the ids that begin and end a text by itself."""
    from tokenizers.processors import TemplateProcessing

    hf: PreTrainedTokenizerBase = _tokenizer(source)
    begin, end = ("" if one is None else _token(hf, one) for one in (bos, eos))
    ends = [(token, one) for token, one in ((begin, bos), (end, eos)) if one is not None]
    backend: Any = hf
    backend.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A {end}".strip(), special_tokens=ends
    )
    hf.eos_token = hf.pad_token = end
    # sentence-transformers would wrap every text in a conversation.
    hf.chat_template = None
    hf.save_pretrained(out)


def _token(hf: "PreTrainedTokenizerBase", number: int) -> str:
    token = hf.convert_ids_to_tokens(number)
    return token if isinstance(token, str) else token[0]
