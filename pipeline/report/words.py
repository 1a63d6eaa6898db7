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

COST_NOTE = (
    "Engine time is what an engine spent on sampling. Its start, training and verification are in the wall "
    "time alone, and in no price."
)
FORCED_COST_NOTE = " Samples closed by force are in the engine time and not in the tokens."
NOT_CONTAMINATED_NOTE = "Not measured: no student that was trained in this run is compared."


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


def what_is_measured(findings: Findings) -> str:
    """Of which questions the headline scores are."""
    name, entry = findings.headline
    held = entry[findings.models[0]]
    questions = f"{held['n']:,} question{'s' if held['n'] > 1 else ''}"
    extent = f"pass@1 over the {questions} of {name}"
    if name == "all":
        extent = f"pass@1 over the {questions} of all {len(findings.tasks)} tasks"
    elif len(findings.tasks) > 1:
        extent += ", the first task (tasks have different numbers of samples, so there is no score of all)"
    return f"{extent}, {held['k']} sample{'s' if held['k'] > 1 else ''} of each."


def cost_note(findings: Findings) -> str:
    return COST_NOTE + (FORCED_COST_NOTE if findings.recipe.eval.forced_budgets else "")


def limits(findings: Findings) -> list[str]:
    """What the scores do not say."""
    name, entry = findings.headline
    questions = entry[findings.models[0]]["n"]
    said = [
        f"Measured on {questions:,} questions of {tasks_of(findings)}, and on nothing else: no claim is made "
        "about other tasks, other prompts or longer answers.",
        "The student can write wrong steps that end in a right answer: only answers were verified.",
        "It learned from one teacher's traces and has that teacher's faults.",
    ]
    pair = entry["paired"].get("student-base")
    if pair is not None and pair["ci95"][0] <= 0:
        said.append(f"On {name} no gain over its base is separated from zero.")
    return said


def tasks_of(findings: Findings) -> str:
    return ", ".join(findings.tasks)
