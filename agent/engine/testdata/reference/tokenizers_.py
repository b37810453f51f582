"""Vocabularies of every kind, and the ids that the packages `tokenizers` and `sentencepiece` give for the corpus."""

import io
import json
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

import converter
import corpus

END, TOOL = "<|im_end|>", "<tool_call>"


@dataclass(frozen=True)
class ByteLevel:
    """How a family's tokenizer.json cuts a text before BPE."""

    pre: str
    about: str
    architecture: str
    model_type: str
    single_digits: bool = False
    """Digits stand alone; else nothing goes before the family's expression."""
    nfc: bool | None = False
    """Whether texts are composed first. None: it isn't known, and such texts are left out."""
    ignore_merges: bool = False


BYTE_LEVEL = [
    ByteLevel("gpt-2", "GPT-2", "LlamaForCausalLM", "llama"),
    ByteLevel("smollm", "SmolLM2", "LlamaForCausalLM", "llama", single_digits=True),
    ByteLevel("refact", "Granite 3, StarCoder", "GraniteForCausalLM", "granite", single_digits=True),
    ByteLevel("llama-bpe", "Llama 3", "LlamaForCausalLM", "llama", ignore_merges=True),
    ByteLevel("qwen2", "Qwen 2.5, Qwen 3", "Qwen2ForCausalLM", "qwen2", nfc=True),
    ByteLevel("deepseek-r1-qwen", "the distillations of DeepSeek R1 to Qwen", "Qwen2ForCausalLM", "qwen2", nfc=None),
    ByteLevel("gpt-4o", "gpt-oss, Phi 4 mini", "GptOssForCausalLM", "gpt_oss"),
    ByteLevel("tekken", "Mistral Nemo", "MistralForCausalLM", "mistral", ignore_merges=True),
]


@dataclass(frozen=True)
class SentencePiece:
    name: str
    about: str
    architecture: str
    model_type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """For the trainer."""
    added: Sequence[str] = ()
    """Tokens that are always read, as tokenizer_config.json lists them."""


SENTENCE_PIECE = [
    SentencePiece("llama-spm", "Llama 2, Mistral 7B, Mixtral: a space is put before the text", "LlamaForCausalLM", "llama"),
    SentencePiece(
        "gemma-spm",
        "Gemma: no space is put before the text, digits stand alone, runs of spaces and newlines are tokens that are always read",
        "Gemma2ForCausalLM",
        "gemma2",
        {"add_dummy_prefix": False, "split_digits": True},
        (TOOL, "▁▁", "▁▁▁", "▁▁▁▁", "\n", "\n\n", "\n\n\n", "<div>", "</div>"),
    ),
]


def make(llama_cpp: Path, folder: Path) -> None:
    """Writes NAME.gguf, a header with the vocabulary and no tensors, and NAME.json, the ids."""
    folder.mkdir(exist_ok=True)
    vocabulary = _trained()
    for family in BYTE_LEVEL:
        _make_byte_level(family, vocabulary, llama_cpp, folder)
    for family in SENTENCE_PIECE:
        _make_sentence_piece(family, llama_cpp, folder)
    _make_word_piece(llama_cpp, folder)


def _trained() -> Mapping[str, Any]:
    """One byte-level vocabulary for all, whose merges go across words: what a family's expression keeps apart then shows in the ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text for text in corpus.TEXTS for _ in range(2)],
        trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, max_token_length=12, show_progress=False),
    )
    model = json.loads(tokenizer.to_str())["model"]
    for token in ("Ġwindows", "windowing", "Ġquick"):  # no merge leads to these: only who takes words whole finds them
        model["vocab"].setdefault(token, len(model["vocab"]))
    return model


def _make_byte_level(family: ByteLevel, vocabulary: Mapping[str, Any], llama_cpp: Path, folder: Path) -> None:
    merges = [tuple(merge) for merge in vocabulary["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary["vocab"], merges=merges, ignore_merges=family.ignore_merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(family)
    tokenizer.decoder = decoders.ByteLevel()
    if family.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False), AddedToken(END, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(TOOL, special=False, normalized=False)])
    with _folder(family.architecture, family.model_type, tokenizer.get_vocab_size()) as model:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token=END).save_pretrained(model)
        converter.convert(llama_cpp, model, folder / f"{family.pre}.gguf", family.pre, vocabulary_only=True)
    spec = json.loads(tokenizer.to_str())
    about = {"name": family.pre, "about": family.about, "normalizer": spec["normalizer"], "pre_tokenizer": spec["pre_tokenizer"]}
    about["ignore_merges"] = family.ignore_merges
    texts = [text for text in corpus.TEXTS if family.nfc is not None or unicodedata.is_normalized("NFC", text)]
    _write(folder / f"{family.pre}.json", about, _cases(tokenizer, texts, corpus.with_special(END, TOOL)))


def _pre_tokenizer(family: ByteLevel) -> pre_tokenizers.PreTokenizer:
    """`transformers` knows the expressions of the newer families; that of GPT-2 is built into `tokenizers`."""
    expression = GGUF_PRE_TOKENIZER_SPLITS.get(family.pre)
    if expression is None:
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain]) if family.single_digits else plain
    split = pre_tokenizers.Split(Regex(expression), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _cases(tokenizer: Tokenizer, texts: Sequence[str], special: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Ids without what the model adds at the ends. Control tokens within the text are read where `parse_special` says so, else they are text."""
    for text in texts:
        yield _case(text, tokenizer.encode(text, add_special_tokens=False).ids)
    for text in special:
        for parse_special in (True, False):
            tokenizer.encode_special_tokens = not parse_special
            yield _case(text, tokenizer.encode(text, add_special_tokens=False).ids, parse_special=parse_special)
    tokenizer.encode_special_tokens = False


def _case(text: str, ids: list[int], **more: Any) -> dict[str, Any]:
    normal = {} if unicodedata.is_normalized("NFC", text) else {"nfc": False}
    return {"text": text} | normal | more | {"ids": ids}


def _make_sentence_piece(family: SentencePiece, llama_cpp: Path, folder: Path) -> None:
    model = io.BytesIO()
    added = [] if family.added else [TOOL]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in corpus.TEXTS[::2] if "\0" not in text]),  # the other half's letters fall back to bytes
        model_writer=model,
        model_type="bpe",
        vocab_size=900,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=[*family.added, *added],
        num_threads=1,
        minloglevel=2,
        **family.options,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    special = {"<unk>": True, "<s>": True, "</s>": True} | {token: False for token in [*family.added, *added]}
    decoder = {str(processor.piece_to_id(token)): {"content": token, "special": is_special} for token, is_special in special.items()}
    with _folder(family.architecture, family.model_type, processor.vocab_size()) as released:
        (released / "tokenizer.model").write_bytes(model.getvalue())
        (released / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
        converter.convert(llama_cpp, released, folder / f"{family.name}.gguf", "default", vocabulary_only=True)
    texts = [*corpus.TEXTS, *corpus.with_special("<s>", TOOL)[6:9]]
    _write(folder / f"{family.name}.json", {"name": family.name, "about": family.about}, (_case(text, processor.encode(text)) for text in texts))


def _make_word_piece(llama_cpp: Path, folder: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces = [*special, *_word_pieces(normalizer)]
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    with _folder("BertModel", "bert", len(pieces)) as released:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(released)
        converter.convert(llama_cpp, released, folder / "bert.gguf", "jina-v2-en", vocabulary_only=True)
    about = {"name": "bert", "about": "BERT, uncased: letters without their accents, in words and what follows within them"}
    _write(folder / "bert.json", about, _cases(tokenizer, corpus.TEXTS, corpus.with_special("[SEP]", "[MASK]")))


def _word_pieces(normalizer: normalizers.Normalizer) -> list[str]:
    """Some letters, beginnings, ends and whole words, by how often they are there; by hand, for the package's trainer gives another order at every run."""
    words: Counter[str] = Counter()
    for text in corpus.TEXTS:
        words.update(re.findall(r"\w+|[^\w\s]", normalizer.normalize_str(text)))
    letters = sorted({letter for word in words for letter in word if ord(letter) < 0x600 or letter in "日本語中文한국"})
    parts: Counter[str] = Counter()
    for word, count in words.items():
        for cut in range(2, len(word)):
            parts[word[:cut]] += count
            parts[f"##{word[cut:]}"] += count
    often = [part for part, count in sorted(parts.items(), key=lambda item: (-item[1], item[0])) if count > 2][:200]
    whole = [word for word, count in sorted(words.items(), key=lambda item: (-item[1], item[0])) if 1 < len(word) < 12][:200]
    return list(dict.fromkeys([*letters, *(f"##{letter}" for letter in letters if letter.isalnum()), *often, *whole]))


class _folder(tempfile.TemporaryDirectory):  # noqa: N801
    """A folder with the config.json of a model of that architecture, for the converter."""

    def __init__(self, architecture: str, model_type: str, vocab_size: int) -> None:
        super().__init__()
        self._config = {"architectures": [architecture], "model_type": model_type, "vocab_size": vocab_size}

    def __enter__(self) -> Path:
        folder = Path(super().__enter__()) / "Vocabulary"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self._config))
        return folder


def _write(path: Path, about: Mapping[str, Any], cases: Iterator[dict[str, Any]]) -> None:
    """One case a line."""
    lines = ",\n".join(json.dumps(case) for case in cases)
    head = json.dumps(about, indent=1)[:-2]
    path.write_text(f'{head},\n "cases": [\n{lines}\n ]\n}}\n')
