"""The cards that the repository holds, as a table: sizes, memory of the weights, licences.

python -m pipeline cards
"""

from pipeline.recipe.cards import ModelSize, StudentCard, TeacherCard, card_names, student_card, teacher_card
from pipeline.recipe.engine_arguments import num_parts

HEAD = ("parameters", "active", "weights", "devices", "outputs", "licence")
UNKNOWN = "-"


def card_list() -> str:
    """Teachers, then students, each from small to large; `-` where a card does not say."""
    teachers = {name: teacher_card(name) for name in card_names("teacher")}
    students = {name: student_card(name) for name in card_names("student")}
    rows = [("teachers", *HEAD), *[(name, *teacher_cells(teachers[name])) for name in by_size(teachers)]]
    rows += [("", *[""] * len(HEAD))]
    rows += [("students", *HEAD), *[(name, *student_cells(students[name])) for name in by_size(students)]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD) + 1)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *[cell_of(row, widths, column) for column in range(1, len(row))]])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [*lines, "", *NOTES]) + "\n"


NOTES = (
    "weights: GB of memory for the weights alone; the cache of a long context comes on top (pipeline plan).",
    "devices: GPUs that share one copy, as the card has it. outputs: whether training on them is allowed;",
    "restricted, and unstated (nobody read it), want generate.accept_licence in the recipe. The card itself",
    "says where each was read.",
)


def cell_of(row: tuple[str, ...], widths: list[int], column: int) -> str:
    """Numbers to the right, words to the left."""
    return row[column].rjust(widths[column]) if column <= 4 else row[column].ljust(widths[column])


def by_size(cards: "dict[str, TeacherCard] | dict[str, StudentCard]") -> list[str]:
    sizes = {name: card.size.parameters if card.size else 0.0 for name, card in cards.items()}
    return sorted(sizes, key=lambda name: (sizes[name], name))


def teacher_cells(card: TeacherCard) -> list[str]:
    parts = num_parts(card.engine.arguments, "the card's engine.arguments") or 1
    devices = card.engine.tensor_parallel * card.engine.data_parallel * parts
    return [*size_cells(card.size), str(devices), card.training_on_outputs, card.licence]


def student_cells(card: StudentCard) -> list[str]:
    return [*size_cells(card.size), UNKNOWN, UNKNOWN, card.licence]


def size_cells(size: ModelSize | None) -> list[str]:
    if size is None:
        return [UNKNOWN] * 3
    weights = size.parameters * size.bytes_per_parameter / 1e9
    return [f"{size.parameters / 1e9:,.4g}B", f"{size.active_parameters / 1e9:,.4g}B", f"{weights:,.1f} GB"]
