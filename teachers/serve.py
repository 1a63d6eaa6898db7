"""Serve a teacher on loopback: `vllm serve` with the settings of its card, until Ctrl-C.

Reads teachers/cards/<name>.yaml, writes nothing. The generate stage uses it with --engine server.

    python -m pipeline serve-teacher --teacher embedded-moe --port 8000
"""

import logging
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

from pipeline.errors import EngineError, RecipeError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import sampled_teacher, teacher_card
from pipeline.run.lifetime import Guard
from pipeline.sampling.engines.serving import serve_command

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
WAIT_SECONDS = 3600.0  # weights of hundreds of gigabytes are read first


def run(teacher: str, port: int, flags: EngineFlags) -> None:
    """Start the server, say when it answers, and stay until it ends. EngineError where it ends by itself."""
    check_port(port)
    guard = Guard()  # it ends the server where this process is killed before it can
    server = subprocess.Popen(command(teacher, port, flags), env=os.environ | guard.mark)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: with the server stopped
    try:
        wait_until_ready(server, port)
        log.info(
            "%s answers: python -m pipeline generate --engine server --url http://%s:%d/v1 (Ctrl-C stops it)",
            teacher, HOST, port,
        )  # fmt: skip
        code = server.wait()
    finally:
        stop(server)
        guard.dismiss()
    raise EngineError(f"vllm serve ended by itself with exit code {code}; its own message is above")


def check_port(port: int) -> None:
    """RecipeError where nothing can listen there, or another server does and would answer for ours."""
    if not 0 < port < 65536:
        raise RecipeError(f"--port {port}: ports are 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise RecipeError(
                f"--port {port}: {HOST}:{port} is not free ({error.strerror}); stop what listens there, or "
                "name another port"
            ) from None


def command(teacher: str, port: int, flags: EngineFlags) -> list[str]:
    """The command line of `vllm serve` for a card."""
    card = teacher_card(teacher)
    model = sampled_teacher(teacher, card)
    return serve_command(
        model,
        flags,
        host=HOST,
        port=port,
        served_model_name=teacher,
        reasoning_parser=card.engine.reasoning_parser,
        chat_template=model.template,
    )


def wait_until_ready(server: "subprocess.Popen[bytes]", port: int) -> None:
    """Return when /health answers. EngineError where the server ends before, or never answers."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise EngineError(
                f"vllm serve ended with exit code {server.returncode} before it answered; see above"
            )
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise EngineError(f"vllm serve has not answered on port {port} for {WAIT_SECONDS:.0f} s; stopped it")


def stop(server: "subprocess.Popen[bytes]") -> None:
    """End the server and what it started; nothing stays on the port."""
    from pipeline.sampling.engines.processes import kill, with_children

    processes = with_children(server.pid)
    server.terminate()
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        log.info("vllm serve does not end by itself; killing it")
    kill(processes)
    server.wait()
