"""report.html: one file that asks nothing of any server and runs nothing that a model wrote.

Text is escaped by the template engine; the browser's data is JSON in which no tag can open; the content
security policy allows this page's own script and style by their hashes, pictures as data, and nothing else.
"""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pipeline.report import charts, tables, use
from pipeline.report.gather import Findings
from pipeline.report.numbers import Interval, interval, percent
from pipeline.report.traces import MAX_CHARACTERS, Answered, FilteredTraces

HERE = Path(__file__).resolve().parent
HEADING = re.compile(r'<h2 id="([^"]+)">([^<]*)</h2>')


def report_page(findings: Findings, traces: FilteredTraces, answered: Answered) -> str:
    """The page as text; the template asks `tables` and `charts` for what it shows."""
    from markupsafe import Markup

    script = (HERE / "page.js").read_text(encoding="utf-8")
    held = {"models": list(findings.models), "questions": answered.shown, "traces": traces.shown}
    return rendered(
        "page.html.j2",
        script,
        findings=findings,
        tables=tables,
        charts=charts,
        use=use,
        cards=headline_cards(findings),
        lengths=traces.lengths,
        questions_note=questions_note(answered),
        traces_note=traces_note(traces),
        data=Markup(inert_json(held)),
    )


def rendered(name: str, script: str, **values: Any) -> str:
    """A template with the style and the script of the page, and a link to each of its headings."""
    import jinja2
    from markupsafe import Markup

    css = (HERE / "page.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template(name).render(
        **values, policy=policy(css, script), css=Markup(css), script=Markup(script)
    )
    links = [f'<a href="#{place}">{title}</a>' for place, title in HEADING.findall(page)]
    return page.replace("<nav></nav>", f"<nav>{''.join(links)}</nav>", 1)


def headline_cards(findings: Findings) -> list[tuple[str, str, str]]:
    """Title, value and note: pass@1 of each model, then the recovered gap; the interval is the note."""
    _, entry = findings.headline
    cards = [
        (f"{model}, pass@1", percent(held.pass_at_1), bounds(held.ci95))
        for model, held in entry.models.items()
    ]
    gap = entry.gap_recovered
    if gap is not None:
        note = bounds(gap.ci95) if gap.ci95 else str(gap.reason)
        cards.append(("gap recovered", percent(gap.value), note))
    return cards


def bounds(ci95: Interval) -> str:
    """The note of a card; no line ends between the two bounds."""
    return "95% interval " + interval(ci95).replace(" ", "\N{NO-BREAK SPACE}")


def policy(css: str, script: str) -> str:
    """The content security policy: hashes of the one style and the one script, pictures as data."""
    return (
        f"default-src 'none'; script-src '{source_hash(script)}'; style-src '{source_hash(css)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def inert_json(value: Any) -> str:
    """JSON that cannot end the element that holds it, whatever its strings say."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace").decode()


def questions_note(answered: Answered) -> str:
    shown, samples = len(answered.shown), answered.samples
    extent = f"All {shown:,} questions"
    if shown < answered.total:
        extent = f"A sample: {shown:,} of {answered.total:,} questions"
    each = "the first sample" if samples == 1 else f"the first {samples} samples"
    return f"{extent}, with {each} of every model; all samples are in eval/*.samples-*.jsonl."


def traces_note(traces: FilteredTraces) -> str:
    total, shown = traces.counts.total(), len(traces.shown)
    if not total:
        return "This run holds no filtered traces."
    extent = f"All {total:,} traces"
    if shown < total:
        extent = f"A sample: {shown:,} of {total:,} traces, of each reason"
    return f"{extent}. Here texts above {MAX_CHARACTERS:,} characters are cut in the middle."
