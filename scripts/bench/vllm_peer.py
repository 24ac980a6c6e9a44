"""vLLM's time for a batch: run by vLLM's own Python, told what to do by one JSON object on stdin.

    {"options": {...of vllm.LLM}, "runs": [[[[token ids], answer tokens], ...], ...],
     "temperature": 0.0}

Prints one line of JSON, the seconds of each run; the first run warms up and belongs to the caller
to drop.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    asked = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints belongs to stderr
    from vllm import LLM, SamplingParams

    llm = LLM(**asked["options"])
    seconds = []
    for jobs in asked["runs"]:
        params = [
            SamplingParams(temperature=asked["temperature"], max_tokens=answer, ignore_eos=True)
            for _, answer in jobs
        ]
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in jobs]
        began = time.perf_counter()
        made = llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - began)
        assert sum(len(one.outputs[0].token_ids) for one in made) == sum(n for _, n in jobs)
    print(json.dumps(seconds), file=answers, flush=True)


if __name__ == "__main__":
    main()
