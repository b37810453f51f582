"""Makes everything in this folder: `python make.py`, or `python make.py models gemma2 phi3` for some of it. See README.md."""

import argparse
from pathlib import Path

import converter
import expected
import models
import templates
import tokenizers_

HERE = Path(__file__).parent


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("part", nargs="?", choices=["all", "models", "templates", "tokenizers"], default="all")
    arguments.add_argument("cases", nargs="*", help="names of models; none means all")
    arguments.add_argument("--cache", type=Path, default=HERE / ".cache", help="where the source package of llama.cpp is, or is put")
    chosen = arguments.parse_args()
    source = converter.source(chosen.cache)
    if chosen.part in ("all", "models"):
        make_models(source, chosen.cases)
    if chosen.part in ("all", "templates"):
        templates.make(source, HERE / "templates")
    if chosen.part in ("all", "tokenizers"):
        tokenizers_.make(source, HERE / "tokenizers")


def make_models(source: Path, names: list[str]) -> None:
    for case in models.CASES:
        if not names or case.name in names:
            made = expected.make(case, source, HERE / "models" / case.name)
            print(f"{case.name}: {made['architecture']}, spread {made['spread']}, float64 {made['float64Difference']}, {made['features']}")


if __name__ == "__main__":
    main()
