"""One forward pass of the built trainer on the start of an example, before the first step.

TRL takes the loss from hidden states and the head's weight, in tiles, with the scale and the cap of the
logits that it knows of. Here it is held against the loss of the model's own logits, for any architecture.
"""

import torch
from torch import nn

from pipeline.errors import StageError
from students.format import IGNORED, Encoded

MAX_TOKENS = 64
# as a share of the loss: in fp32, and in 16 bits
EXACT, ROUNDED = 1e-3, 5e-2
# what a library raises for an architecture that it does not know
LIBRARY_FAULTS = (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)


def rehearse(model: nn.Module, example: Encoded) -> None:
    """StageError where the student does not run as it is built, or its loss is another than its logits'."""
    training, parameter = model.training, next(model.parameters())
    ids = example.ids[-MAX_TOKENS:]
    given = torch.tensor([ids], device=parameter.device)
    labels = torch.tensor([example.labels[-MAX_TOKENS:]], device=parameter.device)
    half = parameter.device.type == "cuda"
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(parameter.device.type, torch.bfloat16, enabled=half):
            fused = model(input_ids=given, labels=labels, use_cache=False, fused_lm_head=True)
            logits = model(input_ids=given, use_cache=False).logits
    except torch.OutOfMemoryError:
        raise  # nothing of the student's
    except LIBRARY_FAULTS as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise StageError(
            f"train: the student does not run as it would be trained ({said}). Name its `lora_targets` in "
            "the card, use train.method: full, or choose a student of another architecture"
        ) from error
    finally:
        model.train(training)
    ours = -fused.log_probs.float().sum()
    own = nn.functional.cross_entropy(
        logits[0, :-1].float(), labels[0, 1:], ignore_index=IGNORED, reduction="sum"
    )
    by = float((ours - own).abs() / own.abs().clamp(min=1e-6))
    if not by <= (ROUNDED if half or parameter.dtype != torch.float32 else EXACT):
        raise StageError(
            f"train: the loss that TRL computes from the student's head is {float(ours):.4g} and that of its "
            f"own logits {float(own):.4g}: the architecture changes its logits in a way that TRL does not "
            "know. Choose a student of another architecture"
        )
