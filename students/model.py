"""The student's weights: loaded for training (full, LoRA, QLoRA) and for the merge.

Weights are read from safetensors only and code that comes with a model is never run.
"""

import logging
from typing import Any

import torch
import transformers
from peft import LoraConfig
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from pipeline.errors import RecipeError, StageError
from pipeline.recipe.cards import SampledModel, StudentCard
from pipeline.recipe.schema import Train
from students import attention


def quiet_libraries() -> None:
    """One bar and one log: ours."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # TRL advises larger batches of examples; ours hold many in each row
    logging.getLogger("trl").setLevel(logging.ERROR)


def pick_device(wanted: str) -> str:
    """cpu or cuda. RecipeError where the wanted one is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            "--device cuda: torch sees no CUDA device here; use --device cpu, or install gpu.lock"
        )
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def load_config(card: StudentCard, model: SampledModel) -> PretrainedConfig:
    """The model's configuration with the card's overrides. StageError where it needs code of its own."""
    try:
        config = AutoConfig.from_pretrained(model.model, revision=model.revision, trust_remote_code=False)
    except ValueError as error:
        said = " ".join(str(error).split())[:200]
        raise StageError(
            f"{model.model}: needs code of its own, which is never run ({said}). Choose a student that "
            "transformers supports by itself"
        ) from None
    for key, value in card.config_overrides.items():
        if not hasattr(config, key):
            raise RecipeError(
                f"config_overrides.{key}: {type(config).__name__} of {model.model} has no such field"
            )
        setattr(config, key, value)
    return config


def load_student(card: StudentCard, model: SampledModel, recipe: Train, device: str) -> PreTrainedModel:
    """The base to train: fp32 on the CPU and full fine-tuning (bf16 autocast on a GPU), else as carded."""
    if recipe.method == "qlora":
        return _load_quantised(card, model, device)
    dtype = torch.float32 if device == "cpu" or recipe.method == "full" else getattr(torch, card.dtype)
    return _load(card, model, dtype, attention.implementation(device))


def load_base(card: StudentCard, model: SampledModel) -> PreTrainedModel:
    """The base in fp32 on the CPU, to merge an adapter into."""
    return _load(card, model, torch.float32, "sdpa")


def lora_config(recipe: Train, targets: str | list[str]) -> LoraConfig:
    """PEFT's configuration: all linear layers but the head, unless the card names others."""
    lora = recipe.lora
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float is as good
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
    )


def _load(
    card: StudentCard, model: SampledModel, dtype: torch.dtype, implementation: str, **options: Any
) -> PreTrainedModel:
    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            model.model,
            revision=model.revision,
            config=load_config(card, model),
            dtype=dtype,
            attn_implementation=implementation,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise StageError(
            f"{model.model}: its weights cannot be loaded ({said}). A student is read from *.safetensors "
            "only, in a local directory or on the hub"
        ) from None
    student, found = loaded
    if found["missing_keys"]:
        lost = sorted(found["missing_keys"])
        raise StageError(
            f"{model.model}: its *.safetensors lack {len(lost)} weights that its config.json asks for "
            f"({', '.join(lost[:3])}), which would start as random numbers. Fetch the whole checkpoint"
        )
    return student


def _load_quantised(card: StudentCard, model: SampledModel, device: str) -> PreTrainedModel:
    """NF4 with double quantisation, as in QLoRA (arXiv 2305.14314). bitsandbytes needs a CUDA device."""
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if device != "cuda" or find_spec("bitsandbytes") is None:
        missing = "this machine has no CUDA device" if device != "cuda" else "bitsandbytes is not installed"
        raise RecipeError(
            f"train.method: qlora quantises with bitsandbytes on a CUDA device, and {missing}. Use method: "
            "lora here (the same adapter on an unquantised base), or train where there is a GPU"
        )
    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return _load(card, model, torch.bfloat16, attention.implementation(device), quantization_config=quantised)
