"""Tiny random students of many architectures, made from their configurations: no hub, no file of theirs.

Weights are multiplied by four, so that attention is not even and a leak shows. Sizes are such that every layer
kind of the family occurs, and that windows and chunks are shorter than an example.
"""

from pathlib import Path
from typing import Any

from tests.students_fixtures import CHATML, build_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 128,  # vLLM's kernel for the CPU has no smaller one
    "linear_value_head_dim": 128,
}
HYBRID = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
# name: transformers' model type, and what differs from SIZES
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2.5": ("qwen2", {}),
    "Qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "Qwen3-MoE": ("qwen3_moe", MOE),
    "Qwen3-Next": ("qwen3_next", MOE | LINEAR | {"shared_expert_intermediate_size": 32}),
    "Qwen3.5": ("qwen3_5_text", LINEAR),
    "Llama-3": ("llama", {}),
    "Mistral": ("mistral", {"sliding_window": 16}),
    "Gemma-2": ("gemma2", {"query_pre_attn_scalar": 32, "sliding_window": 16}),
    "Gemma-3": ("gemma3_text", HYBRID | {"query_pre_attn_scalar": 32}),
    "Gemma-4": (
        "gemma4_text",
        HYBRID | {"hidden_size_per_layer_input": 8, "global_head_dim": 32, "vocab_size_per_layer_input": 263},
    ),
    "SmolLM3": ("smollm3", {"no_rope_layers": [1, 0], "pad_token_id": 0}),
    "LFM2": (
        "lfm2",
        # vLLM reads the sizes by these names too, which the released configurations have
        {
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "block_dim": 64,
            "conv_dim": 64,
        },
    ),
    "Nemotron-H": (
        "nemotron_h",
        {
            "num_hidden_layers": None,
            "layers_block_type": ["mamba", "attention", "moe"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "n_groups": 1,
            "ssm_state_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 32,
        },
    ),
    "OLMo-3": ("olmo3", HYBRID),
    "Phi-4-mini": ("phi3", {"pad_token_id": 0, "original_max_position_embeddings": 512}),
    "GPT-OSS": ("gpt_oss", HYBRID | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Granite-4": (
        "granitemoehybrid",
        {
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "shared_intermediate_size": 32,
        },
    ),
    "Falcon-H1": (
        "falcon_h1",
        {"mamba_d_ssm": 64, "mamba_n_heads": 2, "mamba_d_head": 32, "mamba_d_state": 16},
    ),
    "Llama-4": (
        "llama4_text",
        MOE | {"attention_chunk_size": 16, "no_rope_layers": [1, 0], "num_local_experts": 4},
    ),
}


def build_model(name: str, vocab_size: int, **changes: Any) -> Any:
    """The model, in fp32, of the same random numbers each time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, differs = ARCHITECTURES[name]
    values = {"vocab_size": vocab_size, **SIZES, **differs, **changes}
    config = AutoConfig.for_model(kind, **{key: value for key, value in values.items() if value is not None})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
            elif "sink" in key:
                parameter.normal_()
    return model.eval()


def build_architecture(directory: Path, name: str, **changes: Any) -> Path:
    """Write the model with a byte-level tokenizer and a ChatML template."""
    tokenizer = build_tokenizer(CHATML)
    model = build_model(name, len(tokenizer), eos_token_id=tokenizer.eos_token_id, **changes)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
