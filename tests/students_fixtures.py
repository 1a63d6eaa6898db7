"""A tiny student built in the test: a byte-level tokenizer, a ChatML template, a two-layer Qwen3."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.context import Context, load_context
from pipeline.recipe.cards import SampledModel, StudentCard
from pipeline.records import Example, write_examples
from pipeline.run.contract import Counts, Plan, Start, begin
from students.train import EXAMPLES
from tests.conftest import RECIPE

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
CHATML_THINK = CHATML.replace(
    "<|im_start|>assistant\\n' }}{%- endif %}", "<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)
# what a clone without Git LFS holds in place of a large file
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 11422654\n"


def build_tokenizer(template: str | None, special: list[str] | None = None, **tokens: str) -> Any:
    """A byte-level tokenizer of 256 bytes and a few special tokens; `tokens` are eos_token, pad_token, ..."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = special or ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in named])
    tokenizer.add_tokens(
        [AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")]
    )
    tokens = tokens or {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **tokens
    )
    wrapped.chat_template = template
    return wrapped


def build_student(directory: Path, tokenizer: Any = None, **changes: Any) -> Path:
    """Write a two-layer Qwen3 of about 60k parameters with its tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = tokenizer or build_tokenizer(CHATML_THINK)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**{**sizes, **changes})).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def card_of(directory: Path, **changes: Any) -> StudentCard:
    """A card for a student that a test built."""
    values = {
        "model": str(directory),
        "max_positions": 512,
        "dtype": "float32",
        "licence": "Apache-2.0",
        "eos": "<|im_end|>",
        **changes,
    }
    return StudentCard.model_validate(values)


def sampled(card: StudentCard, **changes: Any) -> SampledModel:
    values: dict[str, Any] = {
        "name": "base",
        "model": card.model,
        "revision": None,
        "dtype": card.dtype,
        "quantisation": None,
        "max_model_len": card.max_positions,
        "tags": card.thinking,
        "template_options": card.template_options,
        "eos": card.eos,
    }
    return SampledModel(**{**values, **changes})


def example_of(question: str, thinking: str | None, answer: str, number: int = 0) -> Example:
    """As filter writes it: the thinking apart from the answer."""
    turn = {"role": "assistant", "content": answer}
    if thinking is not None:
        turn["reasoning_content"] = thinking
    return Example(f"{number:016x}", 0, [{"role": "user", "content": question}, turn], 1)


def sums(num: int) -> list[Example]:
    """Examples of adding two numbers with one line of thinking."""
    found = []
    for i in range(num):
        a, b = 10 + 7 * i % 80, 3 + 5 * i % 60
        thinking = f"{a} + {b}\n" + "and so on\n" * (i % 3) + f"= {a + b}"
        found.append(example_of(f"What is {a} + {b}?", thinking, f"\\boxed{{{a + b}}}", i))
    return found


def context_of(root: Path, *overrides: str, card: StudentCard | None = None) -> Context:
    """The context of a small recipe in `root`, its student that of `card` where one is given."""
    path = root / "small.yaml"
    path.write_text(RECIPE)
    start = Start(recipe=str(path))
    context = load_context(path, root / "runs", start, ["train.batch_size=8", *overrides])
    students = {context.recipe.train.student: card} if card else context.cards.students
    return replace(context, cards=replace(context.cards, students=students))


def finished_filter(
    root: Path, examples: list[Example], *overrides: str, card: StudentCard | None = None
) -> Context:
    """A run under `root` whose filter stage is finished, and its context."""
    context = context_of(root, *overrides, card=card)
    plan = Plan("filter", 1, {"examples": len(examples)}, {}, 0)
    stage = begin(context.directory("filter"), plan, Start())
    if stage is not None:
        with stage:
            write_examples(stage.directory / EXAMPLES, examples)
            stage.finish(Counts(len(examples), len(examples)), {EXAMPLES: len(examples)})
    return context
