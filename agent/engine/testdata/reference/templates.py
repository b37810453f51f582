"""Chat templates of known models, and how `transformers` renders conversations with them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

NOW = datetime(2025, 2, 3, 4, 5, 6)
"""The time that every template is told."""


@dataclass(frozen=True)
class Known:
    """A template that llama.cpp keeps as the model's publisher wrote it."""

    file: str
    license: str
    bos: str
    eos: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    """A variable that this template knows besides, and a value that is not its default."""


_LLAMA3 = ("<|begin_of_text|>", "<|eot_id|>")
_CHATML = ("", "<|im_end|>")
_DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
_GRANITE = ("<|end_of_text|>", "<|end_of_text|>")
_NO_THINKING = {"enable_thinking": False}

KNOWN = {
    "llama-3.1": Known("meta-llama-Llama-3.1-8B-Instruct", "Llama 3.1 Community", *_LLAMA3),
    "llama-3.2": Known("meta-llama-Llama-3.2-3B-Instruct", "Llama 3.2 Community", *_LLAMA3),
    "hermes-3": Known("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "Llama 3.1 Community", "<|begin_of_text|>", "<|im_end|>"),
    "functionary-3.2": Known("meetkai-functionary-medium-v3.2", "MIT", *_LLAMA3),
    "mistral-nemo": Known("mistralai-Mistral-Nemo-Instruct-2407", "Apache-2.0", "<s>", "</s>"),
    "mistral-small-3.2": Known("Mistral-Small-3.2-24B-Instruct-2506", "Apache-2.0", "<s>", "</s>"),
    "qwen2.5": Known("Qwen-Qwen2.5-7B-Instruct", "Apache-2.0", *_CHATML),
    "qwen3": Known("Qwen-Qwen3-0.6B", "Apache-2.0", *_CHATML, _NO_THINKING),
    "qwen3-coder": Known("Qwen3-Coder", "Apache-2.0", *_CHATML),
    "qwq": Known("Qwen-QwQ-32B", "Apache-2.0", *_CHATML),
    "smollm3": Known("HuggingFaceTB-SmolLM3-3B", "Apache-2.0", *_CHATML, _NO_THINKING),
    "gemma-2": Known("google-gemma-2-2b-it", "Gemma", "<bos>", "<eos>"),
    "phi-3.5": Known("microsoft-Phi-3.5-mini-instruct", "MIT", "<s>", "<|endoftext|>"),
    "gpt-oss": Known("openai-gpt-oss-120b", "Apache-2.0", "<|startoftext|>", "<|return|>", {"reasoning_effort": "high"}),
    "granite-3.3": Known("ibm-granite-granite-3.3-2B-Instruct", "Apache-2.0", *_GRANITE, {"thinking": True}),
    "granite-4.0": Known("ibm-granite-granite-4.0", "Apache-2.0", *_GRANITE),
    "deepseek-r1-distill-qwen": Known("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "MIT", *_DEEPSEEK),
    "deepseek-r1-distill-llama": Known("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "MIT", *_DEEPSEEK),
    "deepseek-v3.1": Known("deepseek-ai-DeepSeek-V3.1", "MIT", *_DEEPSEEK, {"thinking": True}),
    "glm-4.6": Known("GLM-4.6", "MIT", "", "<|endoftext|>", _NO_THINKING),
}

_SYSTEM = {"role": "system", "content": "You answer briefly.\nUse “quotes” & <tags> with care."}
_QUESTION = {"role": "user", "content": "  What's the weather in Zürich?  \n"}
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Tells today\'s weather, in °C & as a "word".',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "a city <name>, e.g. Zürich"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius", "description": "which scale"},
                "days": {"type": "integer", "minimum": 1, "description": "how many days"},
            },
            "required": ["city"],
        },
    },
}
_SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Finds pages.",
        "parameters": {
            "type": "object",
            "properties": {
                "words": {"type": "array", "items": {"type": "string"}, "description": "what to look for"},
                "limit": {"type": "number", "description": "how many", "default": 2.5},
                "exact": {"type": "boolean", "description": "whether to match whole words"},
                "filter": {"type": "object", "properties": {"since": {"type": "string"}}, "description": "what to leave out"},
            },
            "required": ["words", "limit"],
        },
    },
}


def _call(identity: str, name: str, arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


_CALL = {"role": "assistant", "content": "", "tool_calls": [_call("abc123def", "get_weather", {"city": "Zürich", "days": 2})]}
_TEXT_CALL = _CALL | {"tool_calls": [_call("abc123def", "get_weather", json.dumps({"city": "Zürich"}, ensure_ascii=False))]}
_SPOKEN_CALL = _CALL | {"content": "Let me look."}
_SEARCH_CALL = _call("ghi456jkl", "search", {"words": ["a", "b\n"], "limit": 1.5, "exact": True, "filter": {"since": None}})
_CALLS = _CALL | {"tool_calls": [*_CALL["tool_calls"], _SEARCH_CALL]}
_RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "abc123def", "content": '{"sky": "sunny", "degrees": 21.5}'}
_SEARCH_RESULT = {"role": "tool", "name": "search", "tool_call_id": "ghi456jkl", "content": "nothing found"}
_ANSWER = {"role": "assistant", "content": "Sunny, 21.5 °C."}
_THANKS = {"role": "user", "content": "Thanks! 👍\n\nAnd\ttomorrow?"}

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "question": {"messages": [_QUESTION]},
    "system": {"messages": [_SYSTEM, _QUESTION]},
    "turns": {"messages": [_SYSTEM, _QUESTION, _ANSWER, _THANKS]},
    "answered": {"messages": [_QUESTION, _ANSWER]},
    "empty content": {"messages": [_SYSTEM | {"content": ""}, _QUESTION | {"content": ""}]},
    "thought": {"messages": [_QUESTION, _ANSWER | {"content": "<think>\nIt is summer.\n</think>\n\nSunny."}, _THANKS]},
    "reasoning": {"messages": [_QUESTION, _ANSWER | {"reasoning_content": "It is summer."}, _THANKS]},
    "two users": {"messages": [_QUESTION, _THANKS]},
    "assistant first": {"messages": [_ANSWER, _THANKS]},
    "unknown role": {"messages": [_QUESTION, _THANKS | {"role": "critic"}]},
    "tools": {"messages": [_QUESTION], "tools": [_WEATHER, _SEARCH]},
    "system and tools": {"messages": [_SYSTEM, _QUESTION], "tools": [_WEATHER, _SEARCH]},
    "call": {"messages": [_QUESTION, _CALL, _RESULT], "tools": [_WEATHER]},
    "spoken call": {"messages": [_SYSTEM, _QUESTION, _SPOKEN_CALL, _RESULT, _ANSWER, _THANKS], "tools": [_WEATHER]},
    "two calls": {"messages": [_QUESTION, _CALLS, _RESULT, _SEARCH_RESULT], "tools": [_WEATHER, _SEARCH]},
    "call without tools": {"messages": [_QUESTION, _CALL, _RESULT]},
    "call with arguments as text": {"messages": [_QUESTION, _TEXT_CALL, _RESULT, _ANSWER, _THANKS], "tools": [_WEATHER]},
    "call not answered": {"messages": [_QUESTION, _CALL], "tools": [_WEATHER]},
}


def make(llama_cpp: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    write(folder / "conversations.json", CONVERSATIONS)
    for name, known in KNOWN.items():
        source = (llama_cpp / "models" / "templates" / f"{known.file}.jinja").read_text()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=source, bos_token=known.bos, eos_token=known.eos)
        variants = [(conversation, True, {}) for conversation in CONVERSATIONS]
        variants += [("answered", False, {}), ("spoken call", False, {})]
        variants += [(conversation, True, known.extra) for conversation in ("question", "system and tools", "reasoning") if known.extra]
        written: dict[str, Any] = {"name": name, "source": f"{known.file}.jinja of llama.cpp", "license": known.license, "now": NOW.isoformat()}
        written |= {"bos_token": known.bos, "eos_token": known.eos, "template": source}
        written["cases"] = [_case(tokenizer, *variant) for variant in variants]
        write(folder / f"{name}.json", written)
        print(f"{name}: {sum('expected' in case for case in written['cases'])} rendered of {len(written['cases'])}")


def _case(tokenizer: PreTrainedTokenizerFast, conversation: str, add_generation_prompt: bool, extra: Mapping[str, Any]) -> dict[str, Any]:
    case: dict[str, Any] = {"conversation": conversation, "add_generation_prompt": add_generation_prompt}
    if extra:
        case["extra"] = dict(extra)
    return case | _rendered(tokenizer, CONVERSATIONS[conversation], add_generation_prompt, extra)


def _rendered(tokenizer: PreTrainedTokenizerFast, conversation: Mapping[str, Any], add_generation_prompt: bool, extra: Mapping[str, Any]) -> dict[str, str]:
    chat_template_utils.datetime = _Stopped
    try:
        return {
            "expected": tokenizer.apply_chat_template(
                conversation["messages"], tools=conversation.get("tools"), add_generation_prompt=add_generation_prompt, tokenize=False, **extra
            )
        }
    except jinja2.UndefinedError as error:
        return {"fails": f"UndefinedError: {error.message}"}
    except jinja2.TemplateError as error:
        return {"raises": str(error.message)}
    except (TypeError, AttributeError) as error:
        return {"fails": f"{type(error).__name__}: {error}"}


class _Stopped(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return NOW


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
