"""Sentences that the page, report.md and the model card share."""

from pipeline.report.gather import Findings

BUDGET_NOTE = (
    "What each model would score if its responses were cut at fewer tokens, from the same samples: a limit "
    "does not change the tokens before it, so this is exact. A cut response counts as wrong."
)
CONTAMINATION_NOTE = (
    "How many questions of each task also stand in the training problems or traces, measured again on what "
    "the student was trained on, and the scores without them."
)


def subtitle(findings: Findings) -> str:
    recipe = findings.recipe
    return (
        f"{recipe.train.student}, fine-tuned ({recipe.train.method}) on verified traces of "
        f"{recipe.generate.teacher}"
    )


def way_of_measuring(findings: Findings) -> str:
    """How the scores were made, so that they can be made again."""
    sampling = findings.results["sampling"]
    settings = ", ".join(f"{name} {value}" for name, value in sampling.items() if value is not None)
    styles = sorted(set(findings.results["prompt"].values()))
    return (
        f"Every model answered the same questions with the same prompt style ({', '.join(styles)}) and "
        f"sampling ({settings}). Intervals are 95%, over questions, each with all its samples; a response "
        "cut at the token limit is wrong."
    )
