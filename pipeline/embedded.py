"""What the embedded teacher and base share: families, tokenizer, chat template, training loop, scoring.

Used by `python -m teachers.embedded.build` and `python -m students.embedded.build`. torch, transformers,
tokenizers and reasoning-gym are imported inside the functions that need them.
"""

import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.render import PROMPTS
from pipeline.sources import is_reserved
from pipeline.verify.extract import last_boxed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

SEED = 20260
ROW_TOKENS = 256

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


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast a model is trained; learning rate falls linearly to zero after the warm-up."""

    steps: int
    rows: int
    learning_rate: float
    warmup: int = 50


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
    user = PROMPTS["boxed"].format(question=question)
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n<think>\n"


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
    stream = mixed_items(SEED)
    for _ in range(3000):
        item = next(stream)
        text = chat_prompt(item.question) + chat_completion("", item.answer)
        yield from re.split(r"<\|?/?\w+\|?>", text)


def encode(tokenizer: "PreTrainedTokenizerFast", texts: list[Text]) -> list[tuple[list[int], int]]:
    """Token ids of each text and how many of them are the prompt. The two parts are encoded apart."""
    backend = tokenizer.backend_tokenizer
    prompts = backend.encode_batch([text.prompt for text in texts])
    completions = backend.encode_batch([text.completion for text in texts])
    return [(p.ids + c.ids, len(p.ids)) for p, c in zip(prompts, completions, strict=True)]


def batches(
    tokenizer: "PreTrainedTokenizerFast", texts: Iterator[Text], rows: int, rng: random.Random
) -> Iterator[dict[str, "torch.Tensor"]]:
    """Endless model inputs of `rows` rows of ROW_TOKENS tokens, each row packed with several texts.

    Positions start again with each text; transformers reads that as a border that attention does not cross.
    So there is next to no padding, and yet every batch holds all lengths and families: texts of one length
    are mostly texts of one family.
    """
    import torch

    while True:
        packed = _packed(encode(tokenizer, [next(texts) for _ in range(4096)]))
        rng.shuffle(packed)
        for start in range(0, len(packed) - rows + 1, rows):
            group = [_row(row, int(tokenizer.pad_token_id)) for row in packed[start : start + rows]]
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


def train(
    model: Any, tokenizer: "PreTrainedTokenizerFast", texts: Iterator[Text], schedule: Schedule
) -> float:
    """Train in place (fp32, AdamW) and return the mean loss of the last 50 steps."""
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / schedule.warmup, 1.0) * max(1 - step / schedule.steps, 0.01),
    )
    stream = batches(tokenizer, texts, schedule.rows, random.Random(SEED))
    losses: list[float] = []
    started, tokens = time.monotonic(), 0
    model.train()
    for step in range(schedule.steps):
        inputs = next(stream)
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
            print(f"step {step + 1}/{schedule.steps} loss {recent:.4f} {rate:,.0f} tok/s", flush=True)
    return sum(losses[-50:]) / len(losses[-50:])


def score(
    model: Any, tokenizer: "PreTrainedTokenizerFast", num_questions: int, temperature: float
) -> dict[str, float]:
    """Accuracy by family on reserved questions, one sample each (temperature 0 is greedy)."""
    return {
        family: sum(correct for correct, _ in sampled(model, tokenizer, family, num_questions, temperature))
        / num_questions
        for family in FAMILIES
    }


def sampled(
    model: Any,
    tokenizer: "PreTrainedTokenizerFast",
    family: str,
    num_questions: int,
    temperature: float,
) -> list[tuple[bool, str]]:
    """Whether each response to the family's first reserved questions is right, and its text."""
    import reasoning_gym
    import torch

    stream = items(family, SEED + 7, reserved=True)
    chosen = [next(stream) for _ in range(num_questions)]
    scorer = reasoning_gym.create_dataset(family, seed=0, size=1, **FAMILIES[family])
    encoded = tokenizer(
        [chat_prompt(item.question) for item in chosen],
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    torch.manual_seed(SEED)
    model.eval()
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    )
    with torch.inference_mode():
        output = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=200,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
    responses = tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return [
        (scorer.score_answer(boxed(response), item.entry) == 1.0, response)
        for item, response in zip(chosen, responses, strict=True)
    ]


def boxed(response: str) -> str:
    """The content of the last box after the thinking, "" where there is none."""
    return last_boxed(response.partition("</think>")[2]) or ""


def build(
    directory: Path, new_model: Callable[[int, int, int], Any], texts: Iterator[Text], schedule: Schedule
) -> None:
    """One model from its seed: tokenizer, training, files and scores. `python -m ... [DIRECTORY]` overrides.

    `new_model` is given the vocabulary's size, the end-of-text id and the padding id.
    """
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else directory
    started = time.monotonic()
    tokenizer = build_tokenizer()
    vocab_size = -(-len(tokenizer) // 64) * 64
    model = new_model(vocab_size, int(tokenizer.eos_token_id), int(tokenizer.pad_token_id))
    loss = train(model, tokenizer, texts, schedule)
    save(model, tokenizer, directory)
    report(directory, loss, time.monotonic() - started)


def save(model: Any, tokenizer: "PreTrainedTokenizerFast", directory: Path) -> None:
    """Write bf16 weights, configuration, tokenizer and chat template, as transformers and vLLM load them."""
    import torch

    if getattr(model.config, "output_router_logits", False):
        model.config.output_router_logits = False  # the load-balancing loss is for training alone
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def report(directory: Path, loss: float, seconds: float) -> None:
    """Print what the saved bf16 weights do on reserved questions, greedily and at temperature 1."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    print(f"{directory}: {model.num_parameters():,} parameters, loss {loss:.4f}, trained in {seconds:.0f} s")
    for label, temperature in (("greedy", 0.0), ("temperature 1", 1.0)):
        accuracy = score(model, tokenizer, 200, temperature)
        mean = sum(accuracy.values()) / len(accuracy)
        print(f"{label}: mean {mean:.1%}", *(f"{family} {value:.1%}" for family, value in accuracy.items()))
