"""The answer of /v1/embeddings. PURE."""

from __future__ import annotations

import base64 as base_64
import struct
import uuid
from collections.abc import Sequence
from typing import Any

from engine.outputs import Sample


def new_name() -> str:
    return f"embd-{uuid.uuid4().hex}"


def answer(samples: Sequence[Sample], model: str, *, base64: bool) -> dict[str, Any]:
    """Of samples that have all ended. `base64`: of little-endian fp32, as OpenAI's clients ask."""
    made = [sample.embedded() for sample in samples]
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _packed(one.embedding) if base64 else list(one.embedding),
        }
        for index, one in enumerate(made)
    ]
    tokens = sum(len(one.prompt_token_ids) for one in made)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _packed(numbers: Sequence[float]) -> str:
    return base_64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
