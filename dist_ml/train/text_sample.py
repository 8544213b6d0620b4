"""What a trained model writes: a text continued byte by byte, the same on every mesh but for
rounding.
"""

import time

import numpy as np
import torch

from dist_ml.comm.agreement import from_root
from dist_ml.counter_random import stream, uniform
from dist_ml.train.trainer import Trainer

NUM_PROMPT, NUM_WRITTEN = 32, 300  # bytes
# Logits are divided by it: below 1, what is likely becomes likelier, and a small model's words more
# often words.
TEMPERATURE = 0.8
LIMIT_SECONDS = 20.0


def write_text(trainer: Trainer, seed: int) -> str:
    """The first bytes of the held-out text and, after them, `NUM_WRITTEN` of the model's; fewer
    where these take more than `LIMIT_SECONDS`. Collective; the same on all ranks.

    Each byte is a forward pass of one window of the context's length. Rank 0 draws it, by numbers
    that are a function of (seed, place in the text), and says when it is enough.
    """
    split = trainer.dataset.test
    length = split.num_features
    text = split.batch(np.zeros(1, np.int64)).inputs[0, :NUM_PROMPT].tolist()
    end = time.monotonic() + LIMIT_SECONDS
    for place in range(NUM_WRITTEN):
        known = text[-length:]
        window = torch.zeros(1, length, dtype=torch.int64)  # what follows isn't seen
        window[0, : len(known)] = torch.tensor(known)
        logits = trainer.outputs(window)[0, len(known) - 1]
        number = float(uniform(stream("text sample", seed), np.array([place]))[0])

        def draw(logits: torch.Tensor = logits, number: float = number) -> int | None:
            return drawn(logits, number) if time.monotonic() < end else None

        byte = from_root(trainer.mesh.world, draw)
        if byte is None:
            break
        text.append(byte)
    return readable(bytes(text))


def drawn(logits: torch.Tensor, number: float) -> int:
    """The token at `number` (0 … 1) of the distribution softmax(logits / TEMPERATURE)."""
    summed = (logits.double() / TEMPERATURE).softmax(0).cumsum(0)
    place = int(torch.searchsorted(summed, number * summed[-1], right=True))
    return min(place, len(logits) - 1)


def readable(content: bytes) -> str:
    """As UTF-8; what is none, or would move a terminal's cursor, as \\x.."""
    text = content.decode(errors="backslashreplace")
    return "".join(
        letter if letter.isprintable() or letter == "\n" else f"\\x{ord(letter):02x}"
        for letter in text.replace("\t", "    ")
    )
