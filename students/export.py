"""What a finished run leaves: checkpoint/ that transformers and vLLM load, and adapter/ beside it.

checkpoint/ holds merged safetensors in the card's dtype, the tokenizer with the template and the end-of-turn
token that were trained, and generation_config.json with that token and the sampling of the traces.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from pipeline.context import CHECKPOINT
from pipeline.errors import StageError
from pipeline.recipe.cards import SampledModel, StudentCard
from pipeline.recipe.schema import Sampling
from students.format import Format
from students.model import load_base, names_in_whole

ADAPTER = "adapter"
WRAPPED = "base_model.model."  # before the name of each weight, as PEFT writes it


def export(
    trained: Path, directory: Path, card: StudentCard, model: SampledModel, style: Format, sampling: Sampling
) -> list[str]:
    """Write checkpoint/ (and adapter/) from what the trainer saved in `trained`; the files, relative."""
    adapter = directory / ADAPTER
    if (trained / "adapter_config.json").is_file():
        shutil.rmtree(adapter, ignore_errors=True)
        shutil.copytree(
            trained, adapter, ignore=shutil.ignore_patterns("*.bin", "*token*", "*.jinja", "*.md")
        )
        # in fp32: merging in bf16 or 4 bit would round the adapter away
        adapted = PeftModel.from_pretrained(load_base(card, model), str(adapter))
        check_loaded(adapted, adapter)
        student = adapted.merge_and_unload()
        path = adapter / "adapter_config.json"
        # no path of this machine: the base is named as its card does, a student of this run from here
        own = Path(model.model).is_relative_to(directory.parent.absolute())
        base = os.path.relpath(model.model, adapter) if own else card.model
        values = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
        if names := names_in_whole(card, model, student):
            values |= fit_to_whole(adapter, values, names)
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    else:
        student = AutoModelForCausalLM.from_pretrained(
            trained, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    student.to(getattr(torch, card.dtype))  # first: what fp32 holds may be beyond float16
    check_finite(student)
    checkpoint = directory / CHECKPOINT
    shutil.rmtree(checkpoint, ignore_errors=True)
    save(student, checkpoint, style, sampling)
    return sorted(
        str(path.relative_to(directory))
        for part in (checkpoint, adapter)
        for path in part.rglob("*")
        if path.is_file()
    )


def check_loaded(adapted: PeftModel, adapter: Path) -> None:
    """StageError where the base has no place for a weight of the adapter, of which the library only warns."""
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        lost = set(file.keys()) - set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if lost:
        raise StageError(
            f"train: the adapter has {len(lost)} weights that its base has no place for ({sorted(lost)[0]}), "
            "so a merge would leave them out, and no checkpoint is written. Train it with train.method: full"
        )


def fit_to_whole(adapter: Path, values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Write the weights of a text model's adapter under the names of the whole that it is a part of; what of
    its configuration changes with them. Targets are whole paths: a picture tower has layers called alike."""

    def renamed(name: str) -> str:
        ours = next((part for part in names if name == part or name.startswith(f"{part}.")), None)
        return name if ours is None else names[ours] + name.removeprefix(ours)

    path = adapter / "adapter_model.safetensors"
    mode = path.stat().st_mode
    weights = {renamed(key.removeprefix(WRAPPED)): weight for key, weight in load_file(path).items()}
    written = {WRAPPED + name: weight for name, weight in weights.items()}
    save_file(written, path, metadata={"format": "pt"})
    path.chmod(mode)
    tokens = values["trainable_token_indices"]
    return {
        "target_modules": sorted({name.partition(".lora_")[0] for name in weights if ".lora_" in name}),
        "exclude_modules": None,
        "trainable_token_indices": tokens and {renamed(name): ids for name, ids in tokens.items()},
    }


def not_finite(student: PreTrainedModel, dtype: torch.dtype | None = None) -> list[str]:
    """The weights that hold a value that is no number, as they are or written in `dtype`, by name."""
    return [
        name
        for name, weight in student.named_parameters()
        if not torch.isfinite(weight if dtype is None else weight.to(dtype)).all()
    ]


def check_finite(student: PreTrainedModel) -> None:
    """StageError with the first weight that holds a value that is no number."""
    wrong = not_finite(student)
    if wrong:
        narrow = ", or state a wider dtype in the student's card" if student.dtype == torch.float16 else ""
        raise StageError(
            f"train: {len(wrong)} weights hold values that are no numbers in {student.dtype} "
            f"({', '.join(wrong[:2])}), so no checkpoint is written. Lower train.learning_rate{narrow}, and "
            "run again with FORCE=1"
        )


def save(student: PreTrainedModel, checkpoint: Path, style: Format, sampling: Sampling) -> None:
    """One loadable directory. The tokenizer's own end-of-text token becomes the one that was trained."""
    tokenizer = style.tokenizer
    tokenizer.eos_token = style.turn_end
    student.generation_config = generation_config(style, sampling)
    student.config.eos_token_id = style.turn_end_id
    student.config.use_cache = True
    student.config.dtype = student.dtype
    student.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    mode = (checkpoint / "config.json").stat().st_mode
    for weights in checkpoint.glob("*.safetensors"):  # its library writes files that only their owner reads
        weights.chmod(mode)


def generation_config(style: Format, sampling: Sampling) -> GenerationConfig:
    """The token that ends a turn, and the sampling that the traces were made with."""
    greedy = sampling.temperature == 0
    # top_k 0 is written too: where it is not stated, transformers samples among 50 tokens
    names = ("temperature", "top_p", "top_k", "min_p")
    chosen = {} if greedy else {name: getattr(sampling, name) for name in names}
    return GenerationConfig(
        do_sample=not greedy,
        eos_token_id=style.turn_end_id,
        bos_token_id=style.tokenizer.bos_token_id,
        pad_token_id=style.tokenizer.pad_token_id,
        max_new_tokens=sampling.max_tokens,
        **chosen,
    )
