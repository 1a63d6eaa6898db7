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

from pipeline.errors import RecipeError, StageError, in_one_line
from pipeline.recipe.cards import SampledModel, StudentCard, called
from pipeline.recipe.schema import Lora, Train
from pipeline.sampling.prompts import token_id
from students import attention

log = logging.getLogger(__name__)

PADDED = ("sdpa", "eager")  # transformers' own attention, which takes padded rows on every device


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
        said = in_one_line(error, 200)
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


def padded_attention(attention_of_train: str | None) -> str:
    """For padded rows: what train found right where it is one of transformers' own, else sdpa."""
    return attention_of_train if attention_of_train in PADDED else "sdpa"


def load_padded(
    card: StudentCard, model: SampledModel, method: str, device: str, attention_of_train: str | None = None
) -> PreTrainedModel:
    """A student whose batches are padded rows: the same weights as `load_student` would train, with the
    attention that train found right where it is one of transformers' own, else with sdpa."""
    known = padded_attention(attention_of_train)
    dtype = torch.float32 if device == "cpu" or method == "full" else getattr(torch, card.dtype)
    student: Any = _load(card, model, dtype, known)
    return student.to(device)


def load_teacher(model: SampledModel, device: str) -> PreTrainedModel:
    """The teacher's weights for its log-probabilities, in fp32 on the CPU, else as its card says."""
    dtype = torch.float32 if device == "cpu" else getattr(torch, model.dtype)
    teacher: Any = AutoModelForCausalLM.from_pretrained(
        model.model, revision=model.revision, dtype=dtype, use_safetensors=True, trust_remote_code=False
    )
    if hasattr(teacher, "set_experts_implementation"):
        teacher.set_experts_implementation("grouped_mm")  # on the CPU three times as fast as the default
    return teacher.to(device).eval().requires_grad_(False)


def load_base(card: StudentCard, model: SampledModel) -> PreTrainedModel:
    """The base in fp32 on the CPU, to merge an adapter into."""
    return _load(card, model, torch.float32, "eager")  # which every architecture has


def lora_config(lora: Lora, targets: str | list[str]) -> LoraConfig:
    """PEFT's configuration: all linear layers but the head, unless the card names others."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float is as good
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
    )


def adapter_config(
    recipe: Train, targets: str | list[str], student: PreTrainedModel, tokenizer: Any
) -> LoraConfig:
    """PEFT's configuration for this student: with the rows of `lora.tokens`, past what takes no adapter."""
    config = linear_config(recipe.lora, targets, student)
    config.trainable_token_indices = trained_rows(recipe, student, tokenizer) or None
    return config


def linear_config(lora: Lora, targets: str | list[str], student: PreTrainedModel) -> LoraConfig:
    """The same without those rows."""
    config = lora_config(lora, targets)
    if targets == "all-linear":
        config.exclude_modules = unadaptable(student) or None
    return config


def unadaptable(student: PreTrainedModel) -> list[str]:
    """Linear layers that give more than a product (a router), or whose weight is read past an adapter: a
    state-space mixer's kernel takes that of its `out_proj`."""
    modules = dict(student.named_modules())
    found = []
    for name, module in modules.items():
        if not isinstance(module, torch.nn.Linear):
            continue
        parent, _, last = name.rpartition(".")
        mixer = hasattr(modules[parent], "A_log") and hasattr(modules[parent], "D")
        if type(module).__module__.startswith("transformers.") or (mixer and last == "out_proj"):
            found.append(name)
    return found


def trained_rows(recipe: Train, student: PreTrainedModel, tokenizer: Any) -> dict[str, list[int]]:
    """The ids of `lora.tokens` for each embedding by its name: one where input and output are tied, else two.

    RecipeError where the tokenizer has no such token.
    """
    ids = [
        token_id(tokenizer, token, called(recipe.student), "train.lora.tokens")
        for token in recipe.lora.tokens
    ]
    embeddings = [student.get_input_embeddings(), student.get_output_embeddings()]
    if embeddings[0].weight is embeddings[1].weight:
        embeddings.pop()  # PEFT follows the tie
    names = {id(module): name for name, module in student.named_modules()}
    return {names[id(module)]: ids for module in embeddings} if ids else {}


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
    except torch.OutOfMemoryError:
        raise  # nothing of the student's
    except (OSError, SafetensorError, RuntimeError) as error:
        said = in_one_line(error, 300)
        raise StageError(
            f"{model.model}: its weights cannot be loaded ({said}). A student is read from *.safetensors "
            "only, in a local directory or on the hub"
        ) from None
    except ValueError as error:  # as of an architecture that has not this attention
        said = in_one_line(error, 300)
        raise StageError(
            f"{model.model}: transformers does not load it with attention {implementation} ({said})"
        ) from None
    student, found = loaded
    if found["missing_keys"]:
        lost = sorted(found["missing_keys"])
        raise StageError(
            f"{model.model}: its *.safetensors lack {len(lost)} weights that its config.json asks for "
            f"({', '.join(lost[:3])}), which would start as random numbers. Fetch the whole checkpoint"
        )
    if options and student.config.get_text_config() is not student.config:
        raise StageError(
            f"{model.model}: {type(student).__name__} reads more than text, and what is quantised does not "
            "come apart. Use train.method: lora, or name a checkpoint of text alone as the student"
        )
    return text_alone(student)


def text_alone(student: PreTrainedModel) -> PreTrainedModel:
    """The part that reads and writes text, of a class that reads pictures or sound too; any other is itself.

    Trained is text alone: the other parts would get no gradient, and vLLM would want their processor of the
    checkpoint. StageError where the two do not come apart.
    """
    config = student.config.get_text_config()
    if config is student.config:
        return student
    name, attention_of_it = type(student).__name__, student.config._attn_implementation
    text: Any
    try:
        text = AutoModelForCausalLM.from_config(
            config, dtype=student.dtype, attn_implementation=attention_of_it
        )
        text.base_model.load_state_dict(student.get_decoder().state_dict(), assign=True)
        text.get_output_embeddings().load_state_dict(
            student.get_output_embeddings().state_dict(), assign=True
        )
        text.tie_weights()
    except (AttributeError, RuntimeError, ValueError) as error:
        said = in_one_line(error, 200)
        raise StageError(
            f"{name} reads more than text, and its text model cannot be trained by itself ({said}). Name a "
            "checkpoint of text alone as the student"
        ) from None
    text.generation_config = student.generation_config
    text.train(student.training)
    log.info("the student is the %s in a %s", type(text).__name__, name)
    return text


def names_in_whole(card: StudentCard, model: SampledModel, text: PreTrainedModel) -> dict[str, str]:
    """What decoder and head of `text` are called in the class that transformers loads the card's model as;
    empty where they are called the same, as where that is the class of `text`."""
    config = load_config(card, model)
    if config.get_text_config() is config:
        return {}
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    pairs = [(text.base_model, whole.get_decoder())]
    pairs.append((text.get_output_embeddings(), whole.get_output_embeddings()))
    names = [{id(part): name for name, part in one.named_modules()} for one in (text, whole)]
    found = {names[0][id(ours)]: names[1][id(theirs)] for ours, theirs in pairs}
    return {ours: theirs for ours, theirs in found.items() if ours != theirs}


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
