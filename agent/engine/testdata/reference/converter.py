"""llama.cpp as the source package of llama-cpp-python ships it: its converter, which writes the GGUFs, and its chat templates."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "0.3.36"
_NAME = f"llama_cpp_python-{VERSION}"


def source(cache: Path) -> Path:
    """The folder of llama.cpp, fetched from the package index where `cache` lacks it."""
    folder = cache / _NAME / "vendor" / "llama.cpp"
    if not folder.is_dir():
        archive = cache / f"{_NAME}.tar.gz"
        if not archive.is_file():
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(cache)]
            subprocess.run([*pip, f"llama-cpp-python=={VERSION}"], check=True)
        with tarfile.open(archive) as packed:
            packed.extractall(cache, filter="data")
    return folder


def convert(llama_cpp: Path, model: Path, gguf: Path, pre: str, vocabulary_only: bool = False) -> None:
    """Runs convert_hf_to_gguf.py on the folder `model`.

    That script recognises a pre-tokenizer by the ids that the family's own vocabulary gives for one text. Ours is another vocabulary, so its answer is given
    by `pre`. All else is the converter's own.
    """
    for folder in (llama_cpp / "gguf-py", llama_cpp):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    os.environ["HF_HUB_OFFLINE"] = "1"
    import convert_hf_to_gguf
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda _self, _tokenizer: pre
    arguments = sys.argv
    sys.argv = ["convert_hf_to_gguf.py", str(model), "--outtype", "f32", "--outfile", str(gguf)]
    sys.argv += ["--vocab-only"] if vocabulary_only else []
    try:
        convert_hf_to_gguf.main()
    finally:
        sys.argv = arguments


def architecture(gguf: Path) -> str:
    from gguf import GGUFReader

    return GGUFReader(gguf).fields["general.architecture"].contents()
