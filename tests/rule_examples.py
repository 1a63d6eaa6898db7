"""Examples of each filter rule: a trace and what the rule says of it. They document the rules and are their
tests; a miss that is found in real traces becomes a row here.
"""

from dataclasses import dataclass, field
from typing import Any

LONG = "We add the next digit and write it down, then we go on to the column on its left. "
PROSE = (
    "First I look at what is asked. The train leaves at noon and drives for three hours at sixty miles an "
    "hour, so it covers one hundred and eighty miles. Then it stops for half an hour, which adds nothing to "
    "the distance. After the stop it drives two more hours at forty miles an hour, which makes eighty miles. "
    "Together that gives two hundred and sixty miles, and the return trip doubles it. Let me check the units "
    "once more: miles per hour times hours leaves miles, as it should be. Nothing else in the text changes "
    "the distance, since the second stop happens after the arrival. So the whole trip has five hundred and "
    "twenty miles, which seems plausible for a day on the rails.\n"
)


@dataclass(frozen=True, slots=True)
class RuleExample:
    """`reason` None means that the rule lets the trace pass. What is not stated is an ordinary correct trace.

    `eval_question` is one question of an eval task, for the rule that looks for it.
    """

    reason: str | None
    thinking: str | None = "2 + 2 is 4."
    answer: str = "The sum is \\boxed{4}."
    closing: str = "closed"
    question: str = "What is 2 + 2?"
    finish_reason: str = "stop"
    status: str = "correct"
    num_tokens: int = 20
    verifier: str = "math"
    eval_question: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


R = RuleExample

EVAL = "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total is that?"
SUM = "State the final answer to the following arithmetic problem: 317 + 58 ="

RULE_EXAMPLES: dict[str, list[RuleExample]] = {
    "finished": [
        R(None),
        R(None, answer="", closing="unclosed"),  # that is closed_thinking's to drop
        R("truncated", finish_reason="length"),
        R("unfinished", finish_reason="abort"),
    ],
    "closed_thinking": [
        R(None),
        R("unclosed_thinking", thinking="2 + 2 is", answer="", closing="unclosed"),
        R("unclosed_thinking", thinking="2 + 2 is", closing="unclosed"),
        R("unclosed_thinking", answer="  \n"),
        R("no_thinking", thinking=None, closing="none"),
        R("no_thinking", thinking="\n"),
        R(None, thinking=None, closing="none", parameters={"required": False}),
    ],
    "one_answer": [
        R(None),
        R(None, answer="\\boxed{4}, that is \\boxed{ 4 }"),
        R(None, answer="No box at all: 4"),
        R(None, answer="x is \\boxed{1} and \\boxed{2}."),  # one answer in two boxes
        R(None, answer="\\boxed{\\dfrac{1}{2}}, so the answer is \\boxed{\\frac{1}{2}}"),
        R("differing_answers", answer="It is \\boxed{4}. No, wait: it must be \\boxed{5}."),
        R(None, thinking="\\boxed{3}? No, \\boxed{5}? No.", answer="\\boxed{4}"),
    ],
    "correct": [
        R(None),
        R("wrong", status="wrong"),
        R("unverifiable", status="unverifiable"),
    ],
    "min_tokens": [
        R(None, num_tokens=10, parameters={"limit": 10}),
        R("too_short", num_tokens=9, parameters={"limit": 10}),
    ],
    "max_tokens": [
        R(None, num_tokens=10, parameters={"limit": 10}),
        R("too_long", num_tokens=11, parameters={"limit": 10}),
    ],
    "not_repetitive": [
        R(None),
        R(None, thinking=PROSE),
        R(None, thinking="1 + 0 = 1\n1 + 0 = 1\n1 + 0 = 1\nso the carry is 0."),
        R("repetitive", answer="Wait, let me check. " * 30),
        R("repetitive", thinking=None, answer="abc" * 3 + "Wait... " * 12),
        R("repetitive", thinking=LONG * 40, answer="\\boxed{4}"),
        R("repetitive", thinking=PROSE * 4),
        R(None, thinking=PROSE * 4, parameters={"max_repeated_runs": 1.0, "max_repeated_lines": 1.0}),
        R("repetitive", thinking="\n".join([*(f"we try the case {i % 4}" for i in range(40)), PROSE])),
    ],
    "one_language": [
        R(None),
        R(None, thinking="The angle \u03b1 is 60\u00b0, and na\u00efve \u2211 notation helps."),
        R("mixed_language", thinking="First \u6211\u4eec\u9700\u8981\u8ba1\u7b97 the sum."),
        R("mixed_language", thinking="\u0421\u043d\u0430\u0447\u0430\u043b\u0430 we add."),
        R(None, thinking="First \u6211\u4eec the sum."),  # two letters are allowed
        R("mixed_language", thinking="First \u6211\u4eec the sum.", parameters={"max_letters": 1}),
        R(None, question="2 + 2 \u7b49\u4e8e\u591a\u5c11?", thinking="\u6211\u4eec\u9700\u8981\u8ba1\u7b97"),
        R(None, question="2 + 2 \u306f?", thinking="\u6211\u4eec\u9700\u8981\u8ba1\u7b97"),
        R("mixed_language", question="2 + 2 \u7b49\u4e8e?", thinking="\ub354\ud558\uba74 \ub429\ub2c8\ub2e4"),
    ],
    "no_leaked_template": [
        R(None),
        R(None, thinking="a < b and b > c, [1, 2], f(x) = <x, y>"),
        R("leaked_template", answer="</think>\n\\boxed{4}"),
        R("leaked_template", thinking="<think>\nfirst"),
        R("leaked_template", answer="\\boxed{4}<|im_end|>"),
        R("leaked_template", answer="\\boxed{4} [INST] next [/INST]"),
        R("leaked_template", answer="\\boxed{4}\n\nUser: and what is 3 + 3?"),
        R("leaked_template", thinking="### Response:\nfirst we add"),
        R("leaked_template", answer="\\boxed{4}<\uff5cend\u2581of\u2581sentence\uff5c>"),
        R(None, thinking="The user: how many does each have? We share by user count: 4 each."),
        R(None, thinking="Each user pays 3, so the system x + y = 4 has one solution."),
    ],
    "no_refusal": [
        R(None),
        R(None, answer="We cannot divide by zero, so x = \\boxed{4}."),
        R(None, answer="I cannot simplify this further: \\boxed{4}"),
        R("refusal", answer="I'm sorry, but I can't help with that."),
        R("refusal", answer="As an AI language model, I do not do sums."),
        R("refusal", answer="I am unable to answer this question."),
        R("refusal", answer="I\u2019m sorry, I cannot assist with that request."),
        R(None, answer="She said: I'm sorry that I ate 2 of them. \\boxed{4}"),
    ],
    "no_gold_leak": [
        R(None),
        R(None, thinking="The expected value is 4, so the answer is 4."),
        R(None, thinking="The given equation has a solution; the answer is given by x = 4."),
        R("gold_leak", thinking="The answer key says 4, so I should get 4."),
        R("gold_leak", thinking="According to the reference solution, it is 4."),
        R("gold_leak", thinking="But the provided answer is 4, so I must have made a mistake."),
        R("gold_leak", thinking="We are told that the correct answer is 4."),
        R("gold_leak", thinking="The ground truth is 4."),
        R(None, thinking="The solution is known to exist. From the solution set we take 4."),
    ],
    "not_contaminated": [
        R(None, eval_question=EVAL),
        R("contaminated", thinking=f"This is like: {EVAL} There it is 3.", eval_question=EVAL),
        R("contaminated", thinking="bolts of blue fiber and half that much WHITE fiber!", eval_question=EVAL),
        R(None, thinking="blue fiber and half that much red fiber", eval_question=EVAL),
        R("contaminated", thinking=f"{SUM} 375", eval_question=SUM, verifier="reasoning_gym"),
        R(None, thinking=SUM.replace("317", "318"), eval_question=SUM, verifier="reasoning_gym"),
        R("contaminated", thinking="compute $\\sin 60^\\circ + \\cos 30^\\circ$ first",
          eval_question="Compute $\\sin 60^\\circ + \\cos 30^\\circ$"),
    ],
}  # fmt: skip
