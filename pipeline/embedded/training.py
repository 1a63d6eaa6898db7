"""What the embedded teacher and base share: families, tokenizer, chat template, training loop, scoring.

Used by `python -m teachers.embedded.build` and `python -m students.embedded.build`. torch, transformers,
tokenizers and reasoning-gym are imported inside the functions that need them.
"""

import itertools
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.problems.sources import is_reserved
from pipeline.recipe.prompts import PROMPTS
from pipeline.verify.extract import last_boxed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

SEED = 20260
ROW_TOKENS = 256
ROWS = 16  # of a step
LEARNING_RATE = 2e-3  # falls linearly to zero after the warm-up
WARM_UP_STEPS = 50

# The demo's families with the reasoning-gym configurations that recipes/demo.yaml repeats.
FAMILIES: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 2, "max_digits": 3},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
    "count_bits": {"min_n": 256, "max_n": 4095},
    "gcd": {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 100},
    "fraction_simplification": {"min_value": 1, "max_value": 30, "min_factor": 2, "max_factor": 12},
}

CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if message.role != 'assistant' %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif not loop.last %}
{{- '<|im_start|>assistant\\n' + message.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}
{%- else %}
{%- set thinking = message.reasoning_content if message.reasoning_content else '' %}
{%- set answer = message.content %}
{%- if '</think>' in answer %}
{%- set thinking = answer.split('</think>')[0].split('<think>')[-1] %}
{%- set answer = answer.split('</think>')[1:] | join('</think>') %}
{%- endif %}
{{- '<|im_start|>assistant\\n<think>\\n' }}
{%- generation %}
{{- thinking.strip('\\n') + '\\n</think>\\n\\n' + answer.lstrip('\\n') + '<|im_end|>' }}
{%- endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n<think>\\n' }}
{%- endif %}
"""


@dataclass(frozen=True, slots=True)
class Item:
    """One reasoning-gym problem: the entry as the family's own scorer wants it back, and its scorer."""

    family: str
    question: str
    answer: str
    entry: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Text:
    """One training text; the loss is taken on `completion` only."""

    prompt: str
    completion: str


def items(family: str, seed: int, reserved: bool = False) -> Iterator[Item]:
    """Endless problems of one family: without the reserved questions, or only those."""
    import reasoning_gym

    size = 50_000_000
    dataset = reasoning_gym.create_dataset(family, seed=seed, size=size, **FAMILIES[family])
    for index in range(size):
        entry = dataset[index]
        if is_reserved(entry["question"]) == reserved:
            yield Item(family, entry["question"], entry["answer"], entry)


def mixed_items(seed: int) -> Iterator[Item]:
    """Endless problems that may be trained on, the families drawn with equal chances."""
    rng = random.Random(seed)
    streams = [items(family, seed + 1_000_000_000 * number) for number, family in enumerate(FAMILIES)]
    while True:
        yield next(rng.choice(streams))


def chat_prompt(question: str) -> str:
    """What the chat template renders for a question in the `boxed` style; a test holds the two equal."""
    turns = "".join(
        f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n"
        for turn in PROMPTS["boxed"].messages(question)
    )
    return f"{turns}<|im_start|>assistant\n<think>\n"


def chat_completion(thinking: str, answer: str) -> str:
    return f"{thinking}\n</think>\n\n\\boxed{{{answer}}}<|im_end|>"


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """A byte-level BPE whose pieces are a digit, a line feed, or all that stands between those.

    So digits are always one token each, any text can be encoded, and whole phrases of the families' question
    texts become single tokens, which keeps prompts at about 25 tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|\n|[^\d\n]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=50,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_corpus(), trainer)
    # not special: vLLM drops special tokens from its text, and the tags must stay in it
    tokenizer.add_tokens(
        [AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _tokenizer_corpus() -> Iterator[str]:
    for item in itertools.islice(mixed_items(SEED), 3000):
        text = chat_prompt(item.question) + chat_completion("", item.answer)
        yield from re.split(r"<\|?/?\w+\|?>", text)


def encode(tokenizer: "PreTrainedTokenizerFast", texts: list[Text]) -> list[tuple[list[int], int]]:
    """Token ids of each text and how many of them are the prompt. The two parts are encoded apart."""
    backend = tokenizer.backend_tokenizer
    prompts = backend.encode_batch([text.prompt for text in texts])
    completions = backend.encode_batch([text.completion for text in texts])
    return [(p.ids + c.ids, len(p.ids)) for p, c in zip(prompts, completions, strict=True)]


def batches(
    tokenizer: "PreTrainedTokenizerFast", texts: Iterator[Text], rng: random.Random
) -> Iterator[dict[str, "torch.Tensor"]]:
    """Endless model inputs of ROWS rows of ROW_TOKENS tokens, each row packed with several texts.

    Positions start again with each text; transformers reads that as a border that attention does not cross.
    So there is next to no padding, and yet every batch holds all lengths and families: texts of one length
    are mostly texts of one family.
    """
    import torch

    while True:
        packed = _packed(encode(tokenizer, list(itertools.islice(texts, 4096))))
        rng.shuffle(packed)
        for start in range(0, len(packed) - ROWS + 1, ROWS):
            group = [_row(row, int(tokenizer.pad_token_id)) for row in packed[start : start + ROWS]]
            columns = zip(*group, strict=True)
            yield dict(zip(("input_ids", "labels", "position_ids"), map(torch.tensor, columns), strict=True))


def _packed(encoded: list[tuple[list[int], int]]) -> list[list[tuple[list[int], int]]]:
    """First fit over the eight rows begun last; texts longer than a row are left out."""
    rows: list[list[tuple[list[int], int]]] = []
    space: list[int] = []
    for ids, cut in encoded:
        if len(ids) > ROW_TOKENS:
            continue
        for number in range(max(0, len(rows) - 8), len(rows)):
            if space[number] >= len(ids):
                break
        else:
            number = len(rows)
            rows.append([])
            space.append(ROW_TOKENS)
        rows[number].append((ids, cut))
        space[number] -= len(ids)
    return rows


def _row(texts: list[tuple[list[int], int]], pad: int) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels and positions of one packed row; the first token of a text is never a target."""
    row: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    for ids, cut in texts:
        cut = max(cut, 1)
        row += ids
        labels += [-100] * cut + ids[cut:]
        positions += range(len(ids))
    rest = ROW_TOKENS - len(row)
    return row + [pad] * rest, labels + [-100] * rest, positions + list(range(rest))


def train(model: Any, tokenizer: "PreTrainedTokenizerFast", texts: Iterator[Text], num_steps: int) -> float:
    """Train in place (fp32, AdamW) and return the mean loss of the last 50 steps."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP_STEPS, 1.0) * max(1 - step / num_steps, 0.01)
    )
    stream = batches(tokenizer, texts, random.Random(SEED))
    losses: list[float] = []
    started, tokens = time.monotonic(), 0
    model.train()
    for step, inputs in enumerate(itertools.islice(stream, num_steps)):
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        losses.append(loss.item())
        tokens += inputs["input_ids"].numel()
        if (step + 1) % 50 == 0:
            rate = tokens / (time.monotonic() - started)
            recent = sum(losses[-50:]) / 50
            print(f"step {step + 1}/{num_steps} loss {recent:.4f} {rate:,.0f} tok/s", flush=True)
    return sum(losses[-50:]) / len(losses[-50:])


def score(
    model: Any, tokenizer: "PreTrainedTokenizerFast", num_questions: int, temperature: float
) -> dict[str, float]:
    """Accuracy by family on its first reserved questions, one sample each (temperature 0 is greedy)."""
    import reasoning_gym
    import torch

    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    model.eval()
    found = {}
    for family, config in FAMILIES.items():
        chosen = list(itertools.islice(items(family, SEED + 7, reserved=True), num_questions))
        scorer = reasoning_gym.create_dataset(family, seed=0, size=1, **config)
        prompts = [chat_prompt(item.question) for item in chosen]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        torch.manual_seed(SEED)
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=200,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                **sampling,
            )
        written = output[:, inputs["input_ids"].shape[1] :]
        # the last box after the thinking
        answers = [
            last_boxed(response.partition("</think>")[2]) or ""
            for response in tokenizer.batch_decode(written, skip_special_tokens=True)
        ]
        pairs = zip(answers, chosen, strict=True)
        found[family] = (
            sum(scorer.score_answer(answer, item.entry) == 1.0 for answer, item in pairs) / num_questions
        )
    return found


def build(
    directory: Path, new_model: Callable[[dict[str, Any]], Any], texts: Iterator[Text], num_steps: int
) -> None:
    """One model from its seed: tokenizer, training, files and scores. `python -m ... [DIRECTORY]` overrides.

    Writes bf16 weights, configuration, tokenizer and chat template, as transformers and vLLM load them, and
    prints what the saved weights do on reserved questions. `new_model` is given what both models' sizes are.
    """
    import torch
    from transformers import AutoModelForCausalLM

    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else directory
    started = time.monotonic()
    tokenizer = build_tokenizer()
    torch.manual_seed(SEED)
    model = new_model(shared_sizes(tokenizer))
    loss = train(model, tokenizer, texts, num_steps)
    if getattr(model.config, "output_router_logits", False):
        model.config.output_router_logits = False  # the load-balancing loss is for training alone
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    seconds = time.monotonic() - started
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    print(f"{directory}: {model.num_parameters():,} parameters, loss {loss:.4f}, trained in {seconds:.0f} s")
    for label, temperature in (("greedy", 0.0), ("temperature 1", 1.0)):
        accuracy = score(model, tokenizer, 200, temperature)
        mean = sum(accuracy.values()) / len(accuracy)
        print(f"{label}: mean {mean:.1%}", *(f"{family} {value:.1%}" for family, value in accuracy.items()))


def shared_sizes(tokenizer: "PreTrainedTokenizerFast") -> dict[str, Any]:
    """What the configurations of both models have in common."""
    return {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "initializer_range": 0.05,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
