"""A Qwen3-MoE with random weights and a character tokenizer: real vLLM in seconds, nonsense for answers."""

import json
from pathlib import Path

CHARACTERS = "".join(chr(code) for code in range(32, 127)) + "\n"
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def write_tiny_teacher(directory: Path, seed: int = 0) -> Path:
    """Write weights, configuration and tokenizer to `directory`; it is loadable by transformers and vLLM."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

    words = {word: number for number, word in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(SPECIAL[:3])
    tokenizer.add_tokens(SPECIAL[3:])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<pad>", chat_template=TEMPLATE
    )
    fast.save_pretrained(directory)
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, moe_intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32, num_experts=4,
        num_experts_per_tok=2, decoder_sparse_step=1, max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=words["<|im_end|>"], pad_token_id=0, bos_token_id=None, torch_dtype="bfloat16",
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    assert json.loads((directory / "config.json").read_text())["architectures"] == ["Qwen3MoeForCausalLM"]
    return directory
