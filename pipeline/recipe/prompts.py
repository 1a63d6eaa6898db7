"""Prompt styles: how a question is put to a model; the same object in generate, filter, train and eval.

A prompt is named by a recipe or a task card. Its text bears identity, its name does not.
"""

from dataclasses import dataclass

Chat = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Prompt:
    """`user` is the text of the user turn, with {question} in it."""

    name: str
    user: str

    def messages(self, question: str) -> Chat:
        """The chat of one user turn for `question`."""
        return [{"role": "user", "content": self.user.format(question=question)}]


PROMPTS = {
    prompt.name: prompt
    for prompt in (
        # the instruction that DeepSeek-R1's model card asks for on mathematics
        Prompt(
            "boxed",
            "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
        ),
        Prompt(
            "choice",
            "{question}\n\nPlease reason step by step, and put the letter of your answer in \\boxed{{}}.",
        ),
        Prompt("plain", "{question}"),
    )
}
