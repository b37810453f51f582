"""Vocabularies of 320 tokens, one of each kind, for models whose weights are random anyway."""

import io
import json
import re
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SIZE = 320

SPECIAL_TOKENS = {
    "bpe": {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
    "glm": {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
    "sentencepiece": {"unk_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "wordpiece": {"pad_token_id": 0},
}
"""What config.json says of each kind."""

_SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A window slides over the tokens; what lies before it is forgotten.",
    "Every layer reads what the layer before it wrote, and adds to that.",
    "Keys and values are kept, so that no token is computed twice.",
]


def write(kind: str, folder: Path) -> None:
    """Writes the files of a tokenizer into a model's folder, as a released model of that kind has them."""
    {"bpe": _byte_level, "glm": _glm, "sentencepiece": _sentence_piece, "wordpiece": _word_piece}[kind](folder)


def _byte_level(folder: Path, last: tuple[str, ...] = ("<|im_end|>",)) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=["<|endoftext|>", *last],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    _save(tokenizer, folder, "GPT2Tokenizer", bos_token="<|endoftext|>", eos_token=last[0])


def _glm(folder: Path) -> None:
    """Byte-level too, with the tokens that the converter asks of a GLM."""
    _byte_level(folder, ("<|user|>", "<|observation|>", "[gMASK]"))


def _sentence_piece(folder: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES),
        model_writer=model,
        model_type="bpe",
        vocab_size=SIZE,
        byte_fallback=True,
        control_symbols=["<|endoftext|>"],  # llama.cpp wants it of a Phi 3
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def _word_piece(folder: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Made by hand, for the trainer's order changes from run to run.
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    words = sorted({word for sentence in _SENTENCES for word in re.findall(r"\w+", sentence.lower())})
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *words]
    filling = (f"##{first}{second}" for first in letters for second in letters if (first + second).isalpha())
    pieces += list(dict.fromkeys([*pieces, *filling]))[len(pieces) : SIZE]
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    _save(tokenizer, folder, "BertTokenizer", **names)


def _save(tokenizer: Tokenizer, folder: Path, tokenizer_class: str, **special: str) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": tokenizer_class}))
