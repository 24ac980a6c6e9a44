"""`python -m engine bench` and `chat`, and what they are made of."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import struct
import subprocess
import sys
import termios

from engine.bench import workload
from engine.chat import converse
from engine.llm import LLM
from engine.sampling_params import SamplingParams
from tests.engine.conftest import MakeCheckpoint

SMALL = ["--device", "cpu", "--dtype", "float32", "--kv-cache-memory-bytes", "8000000"]


def engine(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "engine", *argv]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def test_the_workload_of_nano_vllm_is_drawn_exactly() -> None:
    work = workload(256, (100, 1024), (100, 1024), 10_001, 0)
    assert sum(map(len, work.prompts)) == 142_827
    assert sum(work.output_lengths) == 133_966


def test_bench_counts_every_token(checkpoint: MakeCheckpoint) -> None:
    asked = ["--requests", "3", "--input-len", "5-9", "--output-len", "4", "--json"]
    done = engine("bench", str(checkpoint()), *asked, *SMALL)
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert (told["requests"], told["output_tokens"]) == (3, 12)
    assert 15 <= told["prompt_tokens"] <= 27


def test_bench_refuses_what_is_no_range() -> None:
    done = engine("bench", "m", "--input-len", "9-3")
    assert done.returncode == 2
    assert "'9-3' is neither a number nor a range such as 64-128" in done.stderr


def test_chat_answers_each_line(checkpoint: MakeCheckpoint) -> None:
    limits = ["--max-tokens", "5", "--temperature", "0"]
    done = engine("chat", str(checkpoint()), *limits, *SMALL, stdin="hello\n\n")
    with LLM(str(checkpoint()), dtype="float32", device="cpu") as llm:
        messages = [{"role": "user", "content": "hello"}]
        (made,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=5))
    assert (done.returncode, done.stdout) == (0, made.outputs[0].text + "\n")


def test_a_conversation_is_remembered(checkpoint: MakeCheckpoint) -> None:
    params = SamplingParams(temperature=0, max_tokens=4)
    with LLM(str(checkpoint()), dtype="float32", device="cpu") as llm:
        out = io.StringIO()
        converse(llm, params, "be brief", ["one", "two"], out)
        first = llm.chat(said("one"), params)[0].outputs[0].text
        messages = [*said("one"), {"role": "assistant", "content": first}, *said("two")[1:]]
        second = llm.chat(messages, params)[0].outputs[0].text
    assert out.getvalue() == f"{first}\n{second}\n"


class Impatient(io.StringIO):
    """Presses Ctrl-C once, at the first piece of an answer."""

    pressed = False

    def write(self, text: str) -> int:
        if not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


def test_an_interrupted_answer_ends_and_the_conversation_goes_on(
    checkpoint: MakeCheckpoint,
) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    with LLM(str(checkpoint()), dtype="float32", device="cpu") as llm:
        out = Impatient()
        converse(llm, params, "be brief", ["one", "two"], out)
        first, second, _ = out.getvalue().split("\n")
        (whole,) = llm.chat(said("one"), params)
        assert whole.outputs[0].text.startswith(first)
        assert len(first) < len(whole.outputs[0].text)
        messages = [*said("one"), {"role": "assistant", "content": first}, *said("two")[1:]]
        assert second == llm.chat(messages, params)[0].outputs[0].text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]


SCRIPT = """
import sys
from engine.llm import LLM
with LLM(sys.argv[1], device="cpu", kv_cache_memory_bytes=8000000) as llm:
    llm.generate(["a", "b"], use_tqdm=sys.argv[2] == "bar")
"""


def test_a_bar_counts_the_prompts_only_on_a_terminal(checkpoint: MakeCheckpoint) -> None:
    for wanted in ("bar", "none"):
        mine, terminal = os.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        command = [sys.executable, "-c", SCRIPT, str(checkpoint()), wanted]
        subprocess.run(command, stderr=terminal, check=True)
        os.write(terminal, b"end")  # something to read, whatever was written
        assert (b"2/2" in os.read(mine, 1 << 16)) == (wanted == "bar")
        os.close(mine)
        os.close(terminal)
    piped = engine("bench", str(checkpoint()), "--requests", "2", *SMALL)
    assert "2/2" not in piped.stderr
