"""From nothing to the first token, and the memory that takes, beside llama.cpp's: `start.py FIRST_TOKEN LLAMA_CPP_SH FOLDER ROUNDS`.

For the models that lie in FOLDER/root/models. In turns, each a new process that loads the model, tries it out as each engine does before it serves, reads a
short prompt and generates one token: `cold` with the file's pages dropped from memory before, `warm` with the file read before. Seconds are those of the whole
process. Memory is the most that was resident, by the kernel's count (`ru_maxrss`), for the same context.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

MODELS = ["smollm2-135m-instruct-q4_1.gguf", "gemma-3-270m-q4_k_m.gguf", "random-1b-q4_k_m.gguf", "random-1b-q8_0.gguf"]
NUM_CTX = 2048
PROMPT = "The capital of France is"


def drop(file: Path) -> None:
    """Drops the file from the page cache."""
    with open(file, "rb") as opened:
        os.fdatasync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(file: Path) -> None:
    with open(file, "rb") as opened:
        while opened.read(1 << 24):
            pass


def run(command: list[str]) -> tuple[float, int]:
    """Seconds, and the most bytes that were resident."""
    began = os.times().elapsed
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} ended with {os.waitstatus_to_exitcode(status)}")
    return os.times().elapsed - began, usage.ru_maxrss * 1024


def mib(count: float) -> str:
    return f"{count / (1 << 20):.1f}"


def main(first_token: str, script: str, folder: Path, rounds: int) -> None:
    print(f"from start to first token, num_ctx {NUM_CTX}, medians of {rounds} rounds in turns")
    print(f"{'model':<34}{'start':<6}{'stowage s':>10}{'llama.cpp s':>12}{'ratio':>7}{'stowage MiB':>13}{'llama.cpp MiB':>15}")
    slower = []
    for file in (folder / "root" / "models" / name for name in MODELS):
        if not file.exists():
            continue
        ours = [first_token, str(file), "--num-ctx", str(NUM_CTX), "--prompt", PROMPT]
        numbers = ["-c", str(NUM_CTX), "-n", "1", "-p", PROMPT, "-no-cnv", "--simple-io", "--seed", "1"]
        theirs = [script, str(folder), "llama-completion", "-m", f"/models/{file.name}", *numbers]
        for start, prepare in (("cold", drop), ("warm", read)):
            times, peaks = [], []
            for _ in range(rounds):
                prepare(file)
                seconds, peak = run(ours)
                prepare(file)
                their_seconds, their_peak = run(theirs)
                times.append((seconds, their_seconds))
                peaks.append((peak, their_peak))
            (mine, other), (memory, their_memory) = (tuple(map(statistics.median, zip(*pairs))) for pairs in (times, peaks))
            print(f"{file.name:<34}{start:<6}{mine:>10.2f}{other:>12.2f}{other / mine:>7.2f}{mib(memory):>13}{mib(their_memory):>15}")
            if mine > other:
                slower.append(f"{file.name}, {start}")
    print("slower than llama.cpp: " + "; ".join(slower) if slower else "nowhere slower than llama.cpp")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
