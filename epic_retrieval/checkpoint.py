"""What a model folder holds, and how to load and save it.

An EPIC checkpoint: `epic_config.json` (`EpicConfig`), tokenizer files, `projector.safetensors`, and
either the weights or a LoRA adapter with a reference to its base model. Folders of other embedders
(Qwen3-Embedding, e5-mistral, bge-en-icl, in transformers or sentence-transformers layout) load too;
they have no projector. Knows nothing of tasks and texts.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from epic_retrieval.backbone import Backbone
from epic_retrieval.checkpoint_config import CONFIG_NAME, EpicConfig
from epic_retrieval.checkpoint_foreign import infer_config, read_json
from epic_retrieval.errors import CheckpointError, InputError
from epic_retrieval.int8_file import INT8_NAME, read_int8, write_int8
from epic_retrieval.linear import quantise
from epic_retrieval.pooling import LatentPooling, Pooling, pool_eos, pool_mean
from epic_retrieval.projector import LearnedTokens, Projector
from epic_retrieval.prompt import Prompt, Vectors
from epic_retrieval.storage import digest_of, digest_of_files, digest_of_tensors
from epic_retrieval.tokenization import TextTokenizer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

BUNDLED_MODEL = Path(__file__).parent / "models" / "epic-mini"
TESTED_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "opt"})
_SMALL_WEIGHTS = 1 << 30  # bytes
PROJECTOR_NAME = "projector.safetensors"
LEARNED_NAME = "learned_tokens.safetensors"
POOLING_NAME = "latent_pooling.safetensors"
_PART_NAMES = (PROJECTOR_NAME, LEARNED_NAME, POOLING_NAME)
_ADAPTER_NAME = "adapter_model.safetensors"
_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


Part = TypeVar("Part", bound=torch.nn.Module)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded model: everything that an encoder needs.

    Attributes:
        name: hub id or folder name, for messages and manifests.
        backbone: the language model.
        tokenizer: ids of prompts and texts.
        projector: g, or None for embedders without one.
        config: how texts are encoded.
        learned: trained prompt vectors, or None.
        adapter: the peft model around the backbone's, or None.
        folders: where the weights came from (the checkpoint's, then the base model's); empty for a
            model that was made in memory.
    """

    name: str
    backbone: Backbone
    tokenizer: TextTokenizer
    projector: Projector | None
    config: EpicConfig
    learned: LearnedTokens | None = None
    adapter: Any = None
    folders: tuple[Path, ...] = ()

    def weights_fingerprint(self) -> str:
        """Hex digest of the language model's weights and architecture, adapter included.

        For a model from disk it is that of the files and does not depend on the dtype in use.
        """
        if not self.folders:
            config = self.backbone.model.config.to_diff_dict()
            return digest_of([config, digest_of_tensors(self.backbone.model.state_dict())])
        parts: list[object] = [digest_of_files(_weight_files(folder)) for folder in self.folders]
        if self.adapter is not None:
            parts.append(_adapter_settings(self.folders[0]))
        return digest_of(parts)

    def vectors_fingerprint(self) -> str:
        """Hex digest of what makes prompt vectors: g, or the trained ones; "" without either."""
        makers = [module for module in (self.projector, self.learned) if module is not None]
        return "".join(digest_of_tensors(module.state_dict()) for module in makers)

    def pooling_fingerprint(self) -> str:
        """Hex digest of a pooling's weights; "" when it has none."""
        pooling = self.backbone.pooling
        return digest_of_tensors(pooling.state_dict()) if isinstance(pooling, LatentPooling) else ""

    def embed_prompt(self, prompt: Prompt) -> torch.Tensor:
        """(P, d): what enters the model's first layer for a prompt's prefix; P may be 0."""
        pieces = self.tokenizer.prompt_ids(prompt)
        return self.backbone.embed(
            [piece.values if isinstance(piece, Vectors) else piece for piece in pieces]
        )


def load_checkpoint(
    path_or_hub_id: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    template: str | None = None,
    max_length: int | None = None,
) -> Checkpoint:
    """Load a folder, or a hub model by its id; None loads the model bundled with the package.

    Args:
        path_or_hub_id: an EPIC checkpoint or another decoder embedder.
        device: of torch; None takes a GPU where there is one.
        dtype: "float32", "bfloat16", "float16" or a torch dtype; None takes float32 on a CPU, else
            bfloat16 where the GPU has it, else float16. "int8", on a CPU, is float32 with linear
            layers in 8 bits: faster, at a small loss, and not to be saved.
        template: name of a built-in template, for folders without `epic_config.json`.
        max_length: most tokens of a text, end token included; None takes the checkpoint's.

    Raises:
        CheckpointError: when the folder is missing, incomplete or of an unsupported kind.
        InputError: for a device that is not here, or a dtype that does not exist.
    """
    where = _device(device)
    int8 = dtype == "int8"
    if int8 and where.type != "cpu":
        raise InputError(f'dtype "int8" is for a CPU; use "bfloat16" or "float16" on {where}')
    _check_device(where)
    folder = _resolve(path_or_hub_id)
    has_adapter = (folder / "adapter_config.json").is_file()
    own = EpicConfig.load(folder) if (folder / CONFIG_NAME).is_file() else None
    base = _resolve(_base_model(folder, own)) if has_adapter else folder
    model = _load_model(base, _dtype("float32" if int8 else dtype, where))
    hf = _load_tokenizer(folder if (folder / "tokenizer_config.json").is_file() else base)
    config = own or infer_config(folder, hf, template)
    if max_length is not None:
        config = replace(config, max_length=max_length)
    adapter = None
    if has_adapter:
        adapter = _load_adapter(folder, model)
        model = cast("PreTrainedModel", adapter.get_base_model())
    model.eval()
    torch.nn.Module.to(model, where)
    if int8:
        quantise(model)
    backbone = Backbone(model, causal=config.method.causal)
    _check_ids(folder, config, backbone)
    tested = model.config.model_type in TESTED_FAMILIES and _claims_causal(model.config)
    if config.method.causal and not tested:
        _check_causal(backbone)
    backbone.pooling = _load_pooling(folder, backbone, config)
    return Checkpoint(
        # However it was named: indexes remember it, and are carried to other machines.
        name=BUNDLED_MODEL.name if _is_bundled(folder) else str(path_or_hub_id),
        backbone=backbone,
        tokenizer=TextTokenizer(hf, bos_id=config.bos_token_id, eos_id=config.eos_token_id),
        projector=_load_projector(folder, backbone),
        config=config,
        learned=_load_learned(folder, backbone, config),
        adapter=adapter,
        folders=(folder, base) if has_adapter else (folder,),
    )


def load_tokenizer(
    path_or_hub_id: str | Path | None = None, template: str | None = None
) -> tuple[TextTokenizer, EpicConfig]:
    """The tokenizer and the settings of a model, without its weights, as `load_checkpoint` does."""
    folder = _resolve(path_or_hub_id, weights=False)
    own = EpicConfig.load(folder) if (folder / CONFIG_NAME).is_file() else None
    if not (folder / "tokenizer_config.json").is_file():
        folder = _resolve(_base_model(folder, own), weights=False)
    hf = _load_tokenizer(folder)
    config = own or infer_config(folder, hf, template)
    tokenizer = TextTokenizer(hf, bos_id=config.bos_token_id, eos_id=config.eos_token_id)
    return tokenizer, config


def model_dimension(path_or_hub_id: str | Path | None = None) -> int | None:
    """The length of a model's vectors, without its weights; None if its settings do not say."""
    folder = _resolve(path_or_hub_id, weights=False)
    if not (folder / "config.json").is_file():
        own = EpicConfig.load(folder) if (folder / CONFIG_NAME).is_file() else None
        folder = _resolve(_base_model(folder, own), weights=False)
    config = read_json(folder / "config.json")
    width = config.get("word_embed_proj_dim", config.get("hidden_size"))  # the first is OPT's
    return width if isinstance(width, int) else None


def save_checkpoint(checkpoint: Checkpoint, folder: str | Path, *, rounded: bool = False) -> None:
    """Write a folder that `load_checkpoint` reads; `epic_config.json` comes last.

    Args:
        checkpoint: of any dtype but int8.
        folder: made where it is missing; what another model left there is replaced.
        rounded: write the language model's weights in 8 bits (`int8_file`), which only this package
            reads, and reads as floats.

    Raises:
        InputError: for a model in int8, and for an adapter that is to be rounded.
    """
    if rounded and checkpoint.adapter is not None:
        raise InputError("an adapter cannot be saved in 8 bits; merge it first (epic export)")
    if checkpoint.backbone.precision == "int8":
        raise InputError(
            "a model in int8 cannot be saved: its weights were rounded; load it in float32"
        )
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    # What an earlier model left here must not be taken for a part of this one.
    for name in (CONFIG_NAME, *_PART_NAMES, "adapter_config.json", INT8_NAME):
        (out / name).unlink(missing_ok=True)
    model = checkpoint.adapter or checkpoint.backbone.model
    if rounded:
        for file in out.glob("model*.safetensors*"):
            file.unlink()
        model.config.save_pretrained(out)
        write_int8(model.state_dict(), out)
    else:
        with _quiet(out):
            model.save_pretrained(out)
    checkpoint.tokenizer.hf.save_pretrained(out)
    config = checkpoint.config
    if checkpoint.adapter is not None and config.base_model is None:
        config = replace(config, base_model=str(checkpoint.folders[-1]))
    pooling = checkpoint.backbone.pooling
    parts = {
        PROJECTOR_NAME: checkpoint.projector,
        LEARNED_NAME: checkpoint.learned,
        POOLING_NAME: pooling if isinstance(pooling, LatentPooling) else None,
    }
    for name, part in parts.items():
        if part is not None:
            save_file(part.state_dict(), out / name)
    config.save(out)


def _is_bundled(folder: Path) -> bool:
    return folder.resolve() == BUNDLED_MODEL.resolve()


def _resolve(path_or_hub_id: str | Path | None, *, weights: bool = True) -> Path:
    """The folder of a model: as given, or fetched from the hub when it is no folder but an id."""
    if path_or_hub_id is None:
        if not (BUNDLED_MODEL / CONFIG_NAME).is_file():
            raise CheckpointError(
                f"the bundled model is missing from this installation (expected {BUNDLED_MODEL});"
                " install epic-retrieval again or name a model"
            )
        return BUNDLED_MODEL
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise CheckpointError(
                f"{path} is not a model folder: it has neither config.json nor adapter_config.json"
            )
        return path
    name = str(path_or_hub_id)
    if isinstance(path_or_hub_id, Path) or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"no model at {name!r}; expected an existing folder, a hub id such as"
            ' "Qwen/Qwen3-Embedding-0.6B", or nothing for the bundled model'
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    failures = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    try:
        # No pickled weights (*.bin) and no code.
        patterns = ["*.json", "*.model", "*.txt", "*.jinja"]
        patterns += ["*.safetensors"] if weights else []
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (*failures, OSError) as error:
        raise CheckpointError(
            f"{name!r} is not a folder here, and fetching it from the hub failed: {error}"
        ) from error


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f'device="{device}" is no device that torch knows; {_devices_here()}'
        ) from error


def _check_device(device: torch.device) -> None:
    """Find out before the weights are read whether a model can run there."""
    try:
        torch.zeros(1, device=device).cpu()
    # Of what a build of torch lacks, each backend complains in its own way.
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(
            f'device="{device}" cannot be used here ({reason}); {_devices_here()}'
        ) from error


def _devices_here() -> str:
    found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return f"this installation of torch finds {', '.join(found)}"


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is not None:
        if dtype not in _DTYPES:
            raise InputError(f"unknown dtype {dtype!r}; expected one of {', '.join(_DTYPES)}, int8")
        return _DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def _base_model(folder: Path, config: EpicConfig | None) -> str:
    named = config.base_model if config else None
    if named is None:
        named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not named:
        raise CheckpointError(
            f"{folder} holds a LoRA adapter without its base model; set base_model in {CONFIG_NAME}"
            " to a folder or hub id"
        )
    return str(named)


def _load_model(folder: Path, dtype: torch.dtype) -> "PreTrainedModel":
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    try:
        with _quiet(folder):
            if (folder / INT8_NAME).is_file():
                config = AutoConfig.from_pretrained(folder)
                family: Any = MODEL_MAPPING[type(config)]
                model, info = family.from_pretrained(
                    None, config=config, state_dict=read_int8(folder, dtype), **options
                )
            else:
                model, info = AutoModel.from_pretrained(folder, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the weights cannot be loaded: {error}") from error
    missing = sorted(info["missing_keys"])
    if missing or info["mismatched_keys"]:
        raise CheckpointError(
            f"{folder}: {len(missing)} weights are missing ({', '.join(missing[:3])} ...) and"
            f" {len(info['mismatched_keys'])} have another shape; the encoder would answer with"
            " random vectors. Fetch or save the checkpoint again"
        )
    return cast("PreTrainedModel", model)


def _load_adapter(folder: Path, model: "PreTrainedModel") -> "PeftModel":
    """The model with its LoRA adapter merged in."""
    from peft import PeftModel, get_peft_model_state_dict

    path = folder / _ADAPTER_NAME
    try:
        with safe_open(path, framework="pt") as file:
            found = set(file.keys())
        adapter = PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, RuntimeError, SafetensorError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    # peft only warns of missing weights and goes on as if the model had not been trained.
    missing = sorted(set(get_peft_model_state_dict(adapter)) - found)
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} weights are missing ({', '.join(missing[:3])} ...);"
            " fetch or save the checkpoint again"
        )
    adapter.merge_adapter()
    return adapter


@contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    """No progress bars of transformers around weights that are read in a moment."""
    from transformers.utils import logging as switch

    small = sum(file.stat().st_size for file in folder.glob("*.safetensors")) < _SMALL_WEIGHTS
    if not (small and switch.is_progress_bar_enabled()):
        yield
        return
    switch.disable_progress_bar()
    try:
        yield
    finally:
        switch.enable_progress_bar()


def _load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be loaded: {error}") from error


def _load_projector(folder: Path, backbone: Backbone) -> Projector | None:
    path = folder / PROJECTOR_NAME
    if not path.is_file():
        return None
    return _read_part(path, Projector(backbone.dimension), backbone)


def _load_learned(folder: Path, backbone: Backbone, config: EpicConfig) -> LearnedTokens | None:
    if config.method.source == "encoded":
        return None
    path = folder / LEARNED_NAME
    rows = _shapes(path).get("table", (0,))[0]
    return _read_part(path, LearnedTokens(rows, backbone.dimension), backbone)


def _load_pooling(folder: Path, backbone: Backbone, config: EpicConfig) -> Pooling:
    if config.method.pooling != "latent":
        return {"eos": pool_eos, "mean": pool_mean}[config.method.pooling]
    path = folder / POOLING_NAME
    latents = _shapes(path).get("latents", (0,))[0]
    return _read_part(path, LatentPooling(backbone.dimension, latents), backbone)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _read_part(path: Path, part: Part, backbone: Backbone) -> Part:
    """`part` with the weights of a file, where and as the backbone's are."""
    try:
        part.load_state_dict(load_file(path))
    except Exception as error:  # safetensors raises its own base class; torch a RuntimeError
        raise CheckpointError(
            f"{path} is damaged or belongs to a model of another width than"
            f" {backbone.dimension}: {error}"
        ) from error
    return part.to(backbone.device, backbone.dtype).eval()


def _check_ids(folder: Path, config: EpicConfig, backbone: Backbone) -> None:
    vocabulary = backbone.model.config.vocab_size
    for name in ("bos_token_id", "eos_token_id"):
        if (getattr(config, name) or 0) >= vocabulary:
            raise CheckpointError(
                f"{folder}: {name} is {getattr(config, name)}, but the model knows {vocabulary}"
                f" tokens; correct {CONFIG_NAME} or the tokenizer"
            )


def _claims_causal(config: Any) -> bool:  # noqa: ANN401 (a transformers configuration)
    """False where a known family was switched to attention in both directions."""
    return getattr(config, "is_causal", True) is not False


@torch.no_grad()
def _check_causal(backbone: Backbone) -> None:
    """Refuse models whose tokens look to the right: no prefix of theirs can be shared."""
    family = backbone.model.config.model_type
    if getattr(backbone.model.config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"the model family {family!r} is an encoder with a decoder; expected a causal language"
            f" model, such as {', '.join(sorted(TESTED_FAMILIES))}"
        )
    first, second = backbone.token_embeddings([5, 6]), backbone.token_embeddings([5, 7])
    states = [
        backbone.model(inputs_embeds=rows[None], use_cache=False).last_hidden_state[0, 0]
        for rows in (first, second)
    ]
    if not torch.allclose(states[0], states[1], atol=1e-3):
        raise CheckpointError(
            f"the model family {family!r} attends in both directions; expected a causal language"
            f" model, such as {', '.join(sorted(TESTED_FAMILIES))}"
        )
    logger.warning("the model family %r is not among those that the tests cover", family)


def _weight_files(folder: Path) -> list[Path]:
    files = [folder / "config.json"] if (folder / "config.json").is_file() else []
    weights = sorted(folder.glob("*.safetensors"))
    return files + [file for file in weights if file.name not in _PART_NAMES]


def _adapter_settings(folder: Path) -> dict[str, object]:
    """What decides how an adapter's weights are applied, however often it was saved and moved."""
    settings = dict(read_json(folder / "adapter_config.json"))
    for name in ("base_model_name_or_path", "revision", "inference_mode", "peft_version"):
        settings.pop(name, None)
    for name in ("target_modules", "exclude_modules"):  # sets, written in any order
        if isinstance(settings.get(name), list):
            settings[name] = sorted(settings[name])
    return settings
