"""Chat templates as code that somebody else wrote: rendered in a sandbox, and ended where they do not end."""

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from typing import Any

TEMPLATE_SECONDS = 10.0  # of the first chat; real templates take a millisecond
# what the sandbox, or Python below it, raises for a template that asks for what it cannot have: an include, a
# range of more than 100,000, a number divided by zero
TEMPLATE_FAULTS = (
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
)


@contextlib.contextmanager
def ending_within(seconds: float) -> Iterator[None]:
    """TimeoutError in this thread where the Python code inside runs longer: a template is compiled to such.

    A signal would do it in the main thread alone, and engines start in others.
    """
    thread, lock, inside = ctypes.c_ulong(threading.get_ident()), threading.Lock(), True

    def end() -> None:
        with lock:
            if inside:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TimeoutError))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            inside = False
        timer.cancel()


def rendered(template: str, chat: list[dict[str, str]], prompt: bool, **names: Any) -> str:
    """The chat as a template writes it, with what opens the answer if `prompt`; "" where it cannot: who asks
    the model for real says why (pipeline.sampling.prompts). `names` are special tokens and options."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    made: Any
    try:
        with ending_within(TEMPLATE_SECONDS):
            made = render_jinja_template(
                conversations=[chat], chat_template=template, add_generation_prompt=prompt, **names
            )
    except (TemplateError, TimeoutError, *TEMPLATE_FAULTS):
        return ""
    return str(made[0][0])
