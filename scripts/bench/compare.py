"""Tokens a second beside llama.cpp's, in turns: `compare.py AGENT LLAMA_CPP_SH FOLDER ROUNDS [INSTRUCTIONS]`, for the models that lie in FOLDER/root/models.

Each round measures every test once with both engines, one after the other, so that what else the machine does hits both. Printed are medians over the rounds,
the ratio of them beside what it should be at least, and of decoding the share of what reading the weights from memory allows.
"""

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Model:
    file: str
    prompt: int
    generated: int
    prefill: tuple[float, float]
    """What the ratio of prefill should be at least: on a CPU with AVX-512 VNNI, and on one without."""
    decode: tuple[float, float]
    depths: tuple[int, ...] = ()
    """Where decoding is measured besides at the beginning."""


MODELS = [
    Model("smollm2-135m-instruct-q4_1.gguf", 512, 128, (5.0, 4.5), (2.0, 1.8), (512, 4096)),
    Model("gemma-3-270m-q4_k_m.gguf", 512, 128, (3.0, 2.0), (1.5, 1.2)),
    Model("random-1b-q4_k_m.gguf", 256, 32, (2.0, 2.0), (1.2, 1.2)),
    Model("random-1b-q8_0.gguf", 256, 32, (2.0, 2.0), (1.2, 1.2)),
]
BOUND = 0.85
"""A share of the bound by memory that will do for decoding, whatever the ratio."""

Test = tuple[str, int, int, int, int]
"""Model, tokens of the prompt, tokens generated, depth, threads."""


def tests(models: list[Model]) -> list[Test]:
    every = []
    for model in models:
        for threads in (1, 2):
            every.append((model.file, model.prompt, 0, 0, threads))
            every += [(model.file, 0, model.generated, depth, threads) for depth in (0, *model.depths)]
    return every


def output(command: list[str]) -> Any:
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def ours(agent: list[str], folder: Path, test: Test) -> tuple[float, dict[str, Any]]:
    file, prompt, generated, depth, threads = test
    numbers = ["-p", str(prompt), "-n", str(generated), "-d", str(depth), "-t", str(threads), "-r", "1"]
    report = output([*agent, *numbers, "--format", "json", str(folder / "root" / "models" / file)])
    return report["results"][0]["tokensPerSecond"], report


def theirs(script: str, folder: Path, test: Test) -> float:
    file, prompt, generated, depth, threads = test
    numbers = ["-p", str(prompt), "-n", str(generated), "-d", str(depth), "-t", str(threads), "-r", "1"]
    return output([script, str(folder), "llama-bench", "-m", f"/models/{file}", *numbers, "-o", "json"])[0]["avg_ts"]


def main(agent: list[str], script: str, folder: Path, rounds: int) -> None:
    models = [model for model in MODELS if (folder / "root" / "models" / model.file).exists()]
    rates: dict[Test, list[tuple[float, float]]] = defaultdict(list)
    reports: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for number in range(rounds):
        for test in tests(models):
            if sys.stderr.isatty():
                print(f"\rround {number + 1} of {rounds}: {test[0]}   ", end="", file=sys.stderr, flush=True)
            rate, report = ours(agent, folder, test)
            rates[test].append((rate, theirs(script, folder, test)))
            reports[test[0], test[4]].append(report)
    cpu = next(iter(reports.values()))[0]["cpu"]
    print(f"{cpu}, medians of {rounds} rounds in turns, tokens a second")
    print(f"{'model':<34}{'test':<14}{'threads':>7}{'stowage':>10}{'llama.cpp':>11}{'ratio':>7}{'wanted':>8}{'of bound':>10}")
    short = [line for model in models for line in lines(model, "avx512" not in cpu, rates, reports) if line]
    print("short of what is wanted: " + "; ".join(short) if short else "all as wanted")


def lines(
    model: Model, narrow: bool, rates: dict[Test, list[tuple[float, float]]], reports: dict[tuple[str, int], list[dict[str, Any]]]
) -> list[str]:
    """Prints a model's lines, and returns of each what falls short."""
    short = []
    beginnings: dict[int, tuple[float, float]] = {}
    for test in [test for test in rates if test[0] == model.file]:
        _, prompt, _, depth, threads = test
        mine, other = (statistics.median(values) for values in zip(*rates[test]))
        name = f"prefill {prompt}" if prompt else f"decode @ {depth}"
        known = reports[model.file, threads]
        bound = statistics.median(report["memoryBandwidth"] * 1e9 / report["weightBytes"] for report in known)
        share = mine / bound
        wanted = (model.prefill if prompt else model.decode)[narrow]
        if not prompt and depth == 0:
            beginnings[threads] = (mine, other)
        if depth:
            # It should fall off no faster.
            wanted = beginnings[threads][0] / beginnings[threads][1]
        enough = mine / other >= wanted or (not prompt and share >= BOUND) or (bool(depth) and mine / other >= model.decode[narrow])
        of_bound = "" if prompt else f"{share:.0%}"
        print(f"{model.file:<34}{name:<14}{threads:>7}{mine:>10.1f}{other:>11.1f}{mine / other:>7.2f}{wanted:>8.2f}{of_bound:>10}")
        short.append("" if enough else f"{model.file} {name} with {threads} threads")
    return short


if __name__ == "__main__":
    path, llama_cpp, root, turns, *instructions = sys.argv[1:]
    main([path, "bench", *(f"--instructions={name}" for name in instructions)], llama_cpp, Path(root), int(turns))
