"""A tiny random EPIC checkpoint: real files, real code paths, meaningless vectors.

For tests of what surrounds the model. Takes a second to make and milliseconds to run.
"""

from pathlib import Path


def save_tiny_encoder(folder: Path, *, projector: bool = True) -> Path:
    """Writes a random two-layer Qwen3 with a byte-level tokenizer; returns the folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    from epic_retrieval.backbone import Backbone
    from epic_retrieval.checkpoint import Checkpoint, save_checkpoint
    from epic_retrieval.checkpoint_config import EpicConfig
    from epic_retrieval.projector import Projector
    from epic_retrieval.prompt import get_template
    from epic_retrieval.tokenization import TextTokenizer

    end = "<|endoftext|>"
    vocabulary = {end: 0}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[symbol] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([end])

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=8192,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    checkpoint = Checkpoint(
        name="tiny",
        backbone=Backbone(Qwen3Model(config)),
        tokenizer=TextTokenizer(
            PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end),
            bos_id=None,
            eos_id=0,
        ),
        projector=Projector(32) if projector else None,
        config=EpicConfig(
            template=get_template("epic"),
            bos_token_id=None,
            eos_token_id=0,
            modes=("epic", "text", "none") if projector else ("text", "none"),
        ),
    )
    save_checkpoint(checkpoint, folder)
    return folder
