"""Checks that make it impossible to start training on the wrong tokens, and a view of what is trained on.

Reads the recipe, the student's card, tokenizer and weights, and the first examples. Each check finds nothing
or a fault, which says what is wrong, what was found and what to do next; all faults come in one StageError.

    python -m pipeline preflight --recipe recipes/demo.yaml
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import PretrainedConfig, PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from pipeline.errors import StageError
from pipeline.recipe.cards import SampledModel, StudentCard
from pipeline.recipe.reading import TAGS
from pipeline.recipe.schema import Recipe
from pipeline.render import split_message
from pipeline.sampling.prompts import load_prompts
from students.examples import Shown
from students.export import not_finite
from students.format import Encoded, Format
from students.model import lora_config, unadaptable

DIM, GREEN, PLAIN = "\x1b[2m", "\x1b[32m", "\x1b[0m"
MARK = "retort-marks-the-answer"
NEAR_MEAN = (
    0.05  # of the usual distance from the mean; transformers draws rows that it adds 30,000 times closer
)


@dataclass(frozen=True, slots=True)
class Subject:
    """All that the checks look at. `student` is the base, loaded."""

    recipe: Recipe
    card: StudentCard
    model: SampledModel
    style: Format
    student: PreTrainedModel
    shown: list[Shown]
    largest_id: int

    @property
    def config(self) -> PretrainedConfig:
        return self.student.config.get_text_config()


def preflight(subject: Subject) -> list[str]:
    """Names of the checks that passed. StageError with every fault where any did not."""
    faults = [f"{name}: {fault}" for name, check in CHECKS.items() if (fault := check(subject)) is not None]
    if faults:
        raise StageError(
            f"preflight: {len(faults)} of {len(CHECKS)} checks failed, nothing was trained.\n  "
            + "\n  ".join(faults)
        )
    return list(CHECKS)


def render(encoded: Encoded, style: Format, colour: bool) -> str:
    """The text of an example, what is trained on in green (without colours: between [[ and ]])."""
    asked, trained = style.prompts.decode(encoded.prompt), style.prompts.decode(encoded.trained)
    return f"{DIM}{asked}{PLAIN}{GREEN}{trained}{PLAIN}" if colour else f"{asked}[[{trained}]]"


def thinks(subject: Subject, shown: Shown) -> bool:
    """Whether the example has thinking, which decides the mode that its prompt is written in."""
    return split_message(shown.messages[-1], subject.style.tags).thinking is not None


def mask_not_empty(subject: Subject) -> str | None:
    if all(shown.encoded.trained for shown in subject.shown):
        return None
    return (
        "an example has no token that is trained on, so its loss is 0 and teaches nothing. Its last "
        "message must hold the answer; run: make filter again"
    )


def thinking_once(subject: Subject) -> str | None:
    """The trained turn holds the thinking once, between one opening and one closing tag."""
    style, tags = subject.style, subject.style.tags
    if not tags:
        return None
    for shown in subject.shown:
        opening = style.opening(shown.encoded.prompt)
        turn = opening + style.prompts.decode(shown.encoded.trained)
        thinking = split_message(shown.messages[-1], tags).thinking
        counts = turn.count(tags.open), turn.count(tags.close)
        wanted = (1, 1) if thinking is not None or opening else (0, 0)
        if counts != wanted:
            return (
                f"the trained turn has {counts[0]} opening and {counts[1]} closing thinking tags, expected "
                f"{wanted[0]} and {wanted[1]}. Its tags are {tags.open} and {tags.close}: state the "
                "student's own in its card (thinking.open, thinking.close), and run: make filter again"
            )
        if thinking is not None and thinking not in turn:
            return (
                "the thinking does not survive the tokenizer: decoding the trained tokens gives another "
                "text. The tokenizer in the student's card normalises or lacks characters; choose another "
                "student"
            )
    return None


def question_in_prompt(subject: Subject) -> str | None:
    """Templates of models that also see pictures write nothing for a message that is plain text."""
    for shown in subject.shown:
        asked = str(shown.messages[-2]["content"]).strip()
        if asked not in subject.style.prompts.text(shown.messages[:-1], thinking=thinks(subject, shown)):
            return (
                f"the prompt does not hold the question {asked[:40]!r}: the chat template leaves it out or "
                "changes it. Name one of students/templates/*.jinja as `template` in the card"
            )
    return None


def thinking_left_open(subject: Subject) -> str | None:
    """A generation prompt that closes a block (thinking switched off) would be followed by a second one; one
    that opens it would put the whole text of a student without thinking into it."""
    if not subject.style.tags:
        return opened_by_none(subject)
    close = subject.style.tags.close
    for shown in subject.shown:
        if not thinks(subject, shown):  # then it is as it should be
            continue
        prompt = subject.style.prompts.text(shown.messages[:-1])
        before = subject.style.prompts.text(shown.messages[:-1], generation_prompt=False)
        if close in prompt.removeprefix(before):
            return (
                f"the generation prompt closes a thinking block itself ({prompt[-40:]!r}), and the student "
                "would be trained to open another one. Switch thinking on by template_options in the card, "
                "or name another template there"
            )
    return None


def opened_by_none(subject: Subject) -> str | None:
    prompt = subject.style.prompts.text(subject.shown[0].messages[:-1]).rstrip()
    opened = next((opening for opening, _ in TAGS if prompt.endswith(opening)), None)
    if opened is None:
        return None
    return (
        f"the card says thinking: none, and the generation prompt ends with {opened}. State the tags in the "
        "card, or switch thinking off by template_options there, or name another template"
    )


def tags_where_the_card_says(subject: Subject) -> str | None:
    shown = next((one for one in subject.shown if thinks(subject, one)), None)
    if shown is None and subject.card.without_thinking:
        return None  # no example shows the mode that the tags are of
    opens = bool(subject.style.opening((shown or subject.shown[0]).encoded.prompt))
    stated = subject.card.thinking.opened_by_prompt
    if opens == stated:
        return None
    return (
        f"the generation prompt {'does' if opens else 'does not'} end with {subject.style.tags.open}, and "
        f"the card says opened_by_prompt: {str(stated).lower()}, so eval would split answers wrongly. Set "
        f"thinking.opened_by_prompt: {str(opens).lower()} in the student's card"
    )


def no_double_special(subject: Subject) -> str | None:
    tokenizer, end = subject.style.tokenizer, subject.style.turn_end_id
    for shown in subject.shown:
        if tokenizer.bos_token_id is not None and shown.encoded.ids[:2] == [tokenizer.bos_token_id] * 2:
            return (
                f"the prompt begins with {tokenizer.bos_token} twice: the template writes it and the "
                "tokenizer adds it again. Remove it from the template named in the card"
            )
        num_ends = shown.encoded.trained.count(end)
        if num_ends > 1:
            return (
                f"the trained turn holds {subject.style.turn_end} {num_ends} times, so the student would "
                "stop inside its answer. The examples contain it as text; run: make filter again"
            )
    return None


def turn_end_is_trained(subject: Subject) -> str | None:
    """In what TRL's collator hands to the model, each example ends with its end-of-turn token as a label."""
    tokenizer, end = subject.style.tokenizer, subject.style.turn_end_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    rows = [{"input_ids": s.encoded.ids, "labels": s.encoded.labels} for s in subject.shown]
    batch = DataCollatorForLanguageModeling(pad, padding_free=True)(rows)
    borders = batch["cu_seq_lens_q"].tolist()[1:]
    if all(int(batch["labels"][0, border - 1]) == end for border in borders):
        return None
    reason = " (its padding token is the same one)" if pad == end else ""
    return (
        f"{subject.style.turn_end} is not trained on at the end of the turn{reason}, so the student would "
        "never stop. State the token that ends its template's turn as `eos` in the card"
    )


def turn_end_of_template(subject: Subject) -> str | None:
    """What the template writes after an assistant's message is the token that the card calls `eos`."""
    style = subject.style
    chat = [{"role": "user", "content": "1"}, {"role": "assistant", "content": MARK}]
    text = style.prompts.text(chat, generation_prompt=False)
    after = text.partition(MARK)[2].lstrip()
    if not after or after.startswith(style.turn_end):
        return None
    return (
        f"the template ends the assistant's turn with {after[:24]!r}, and the student would be trained to "
        f"end it with {style.turn_end!r}. State the template's own token as `eos` in the student's card"
    )


def same_template_in_eval(subject: Subject) -> str | None:
    recipe = subject.recipe
    if recipe.eval.prompt not in (None, recipe.generate.prompt):
        return (
            f"eval.prompt is {recipe.eval.prompt!r} and the examples were asked in "
            f"{recipe.generate.prompt!r}. Remove eval.prompt, so that both are the same"
        )
    prompts = load_prompts(subject.model)
    for shown in subject.shown:
        asked = prompts.ids(shown.messages[:-1], thinks(subject, shown)) if prompts else []
        if shown.encoded.prompt != asked:
            return (
                f"the prompt has {shown.encoded.num_prompt} tokens in training and {len(asked)} in eval. "
                "Both must come from the template in the card: state `template` and `template_options` there "
                "and nowhere else"
            )
    return None


def tokens_in_embedding(subject: Subject) -> str | None:
    """Those of the examples, and those that the tokenizer names: libraries write them into configurations."""
    rows = len(cast(torch.Tensor, subject.student.get_input_embeddings().weight))
    tokenizer = subject.style.tokenizer
    named = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    known = [found for found in named if found is not None]
    largest = max(subject.largest_id, subject.style.turn_end_id, *known)
    if largest < rows:
        return None
    token = tokenizer.convert_ids_to_tokens(largest)
    return (
        f"token {largest} ({token!r}) is outside the embedding, which has {rows} rows. The tokenizer belongs "
        "to another model, or a token was added and the model not resized: name the student's own tokenizer "
        "in its card"
    )


def length_within_positions(subject: Subject) -> str | None:
    positions = min(subject.card.max_positions, getattr(subject.config, "max_position_embeddings", 2**31))
    if subject.recipe.train.max_length <= positions:
        return None
    return (
        f"train.max_length is {subject.recipe.train.max_length}, and the student has {positions} positions. "
        "Lower it, or extend the positions in the card (config_overrides with rope settings, max_positions)"
    )


def lora_targets_match(subject: Subject) -> str | None:
    """As PEFT reads `lora_targets`: a list of names, or one pattern for whole paths."""
    recipe, targets = subject.recipe.train, subject.card.lora_targets
    if recipe.method == "full" or targets == "all-linear":
        return None
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    modules = dict(subject.student.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, kinds)]
    known = ", ".join(sorted({name.split(".")[-1] for name in linear}))
    alone = {targets: targets} if isinstance(targets, str) else {target: [target] for target in targets}
    try:
        configs = {target: lora_config(recipe.lora, given) for target, given in alone.items()}
        found = {t: [n for n in modules if check_target_module_exists(configs[t], n)] for t in alone}
    except re.error as error:
        return (
            f"lora_targets: {targets!r} cannot be read as a pattern ({error}). Use all-linear, or a list of: "
            f"{known}"
        )
    missing = [target for target, names in found.items() if not names]
    targeted = [name for names in found.values() for name in names]
    if (fault := no_embedding(subject, modules, targeted)) is not None:
        return fault
    refused = unadaptable(subject.student)
    other = next((name for name in targeted if name not in linear or name in refused), None)
    if missing or not alone:
        wrong = f"{', '.join(missing) or 'an empty list'} match no layer of the student"
    elif other is not None:
        wrong = f"{other} is a {type(modules[other]).__name__}, which takes no adapter"
    else:
        return None
    return f"lora_targets: {wrong}. Use all-linear, or some of: {known}"


def no_embedding(subject: Subject, modules: dict[str, torch.nn.Module], targeted: list[str]) -> str | None:
    """The loss reads the head's weight past its adapter; tied weights have one value, two with an adapter."""
    student = subject.student
    embedding, head = student.get_input_embeddings(), student.get_output_embeddings()
    for name in targeted:
        if modules[name] is head:
            reason = "is the output embedding, whose adapter the loss would not see"
        elif modules[name] is embedding and embedding.weight is head.weight:
            reason = "is tied to the output embedding, and merging its adapter would change both"
        else:
            continue
        return (
            f"lora_targets: {name} {reason}, so another model would be exported than was trained. Leave it "
            "out and name the tokens that are new in train.lora.tokens, or use train.method: full"
        )
    return None


def weights_are_numbers(subject: Subject) -> str | None:
    """One value that is none spoils the loss of the first step, or the checkpoint after the last: that one
    is written in the card's dtype, which may be narrower than what is trained."""
    written = subject.card.dtype
    beyond = not_finite(subject.student, getattr(torch, written))
    if not beyond:
        return None
    wrong = not_finite(subject.student)
    if not wrong or subject.student.dtype == torch.float16:  # as which it may have been loaded
        return (
            f"{len(beyond)} weights of the base hold values that {written} does not "
            f"({', '.join(beyond[:2])}), so no checkpoint could be written after training. "
            "State a wider dtype in the student's card "
            f"({'bfloat16' if written == 'float16' else 'float32'})"
        )
    return (
        f"{len(wrong)} weights of the base hold values that are no numbers ({', '.join(wrong[:2])}), and no "
        f"training mends them. Fetch {subject.card.model} again, or choose another student"
    )


def can_emit_turn_end(subject: Subject) -> str | None:
    """An adapter leaves the output embedding as it is; a row that was never learned can never win."""
    return _unlearned(subject, "output", {subject.style.turn_end_id})


def can_read_special_tokens(subject: Subject) -> str | None:
    """What the template writes and an adapter leaves as it is: added tokens that the base never learned."""
    tokenizer = subject.style.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    used = {token for shown in subject.shown for token in shown.encoded.ids}
    return _unlearned(subject, "input", used & special)


def _unlearned(subject: Subject, side: str, tokens: set[int]) -> str | None:
    """A fault where a row of that embedding is as no training leaves it: zeros, another one's copy, or the
    mean that resize_token_embeddings writes."""
    recipe, tokenizer = subject.recipe.train, subject.style.tokenizer
    if recipe.method == "full":
        return None
    student = subject.student
    module = student.get_input_embeddings() if side == "input" else student.get_output_embeddings()
    weight = cast(torch.Tensor, module.weight).detach()
    for token in sorted(tokens - {tokenizer.convert_tokens_to_ids(name) for name in recipe.lora.tokens}):
        if (state := state_of_row(weight, token)) is None:
            continue
        name = tokenizer.convert_ids_to_tokens(token)
        verb = "emit" if side == "output" else "read"
        return (
            f"the {side} embedding of {name} {state}: the base never learned to {verb} it, and an adapter "
            "does not change it. Name it in train.lora.tokens, use train.method: full, or a template whose "
            "tokens the base knows"
        )
    return None


def state_of_row(weight: torch.Tensor, token: int) -> str | None:
    """How a row shows that it was never learned; None where it does not."""
    row = weight[token]
    if not row.any():
        return "is all zeros"
    alike = (weight[:, 0] == row[0]).nonzero()[:, 0]  # by one column first: the matrix is large
    others = int((weight[alike] == row).all(dim=1).sum()) - 1
    if others > 0:  # a row of no numbers is not even equal to itself
        return f"equals {others} other rows"
    mean, some = weight.float().mean(dim=0), weight[:: max(1, len(weight) // 1000)].float()
    usual = (some - mean).norm(dim=1).median()
    return "is the mean of all rows" if (row.float() - mean).norm() < NEAR_MEAN * usual else None


CHECKS: dict[str, Callable[[Subject], str | None]] = {
    "empty mask": mask_not_empty,
    "question": question_in_prompt,
    "thinking": thinking_once,
    "empty thinking": thinking_left_open,
    "opening tag": tags_where_the_card_says,
    "double token": no_double_special,
    "end of turn": turn_end_is_trained,
    "template's end of turn": turn_end_of_template,
    "template in eval": same_template_in_eval,
    "token outside the embedding": tokens_in_embedding,
    "positions": length_within_positions,
    "LoRA targets": lora_targets_match,
    "weights of the base": weights_are_numbers,
    "end of turn in the base": can_emit_turn_end,
    "special tokens in the base": can_read_special_tokens,
}
