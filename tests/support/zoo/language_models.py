"""Tiny random language models and their tokenizers, as newer pipelines read their prompts with them. Every token is a byte."""

from typing import Any

import transformers
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)

from tests.support.tiny import TEXT

LETTERS = sorted(ByteLevel.alphabet())
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
WORDS = {word: number for number, word in enumerate([*LETTERS, *MARKS])}
END = WORDS["<|endoftext|>"]
# A turn of a conversation, and the place where the answer begins.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": TEXT,
    "intermediate_size": 2 * TEXT,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": TEXT // 2,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": END,
}


def qwen_tokenizer(**changes: Any) -> Qwen2Tokenizer:
    tokenizer = Qwen2Tokenizer(vocab=WORDS, merges=[], extra_special_tokens=list(MARKS), **changes)
    tokenizer.chat_template = CHAT
    return tokenizer


def glm_tokenizer() -> PreTrainedTokenizerFast:
    """Every text begins with a mark, and is padded before it."""
    backend = qwen_tokenizer()._tokenizer
    mark = "<|im_start|>"
    backend.post_processor = TemplateProcessing(single=f"{mark} $A", special_tokens=[(mark, WORDS[mark])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|endoftext|>", padding_side="left"
    )


def language_model(name: str, **changes: Any) -> Any:
    """A model of transformers by the name of its class, such as Qwen3Model, in a tiny shape."""
    made = getattr(transformers, name)
    return made(made.config_class(**{**SHAPE, **changes}))


def qwen_vl(**changes: Any) -> Qwen2_5_VLForConditionalGeneration:
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                **SHAPE,
                **changes,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
            },
            vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT},
            **dict.fromkeys(ids, WORDS["<|image_pad|>"]),
        )
    )


def gemma_tokenizer() -> GemmaTokenizer:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *(chr(code) for code in range(33, 127))]
    return GemmaTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], add_bos_token=True)


def gemma() -> Gemma2Model:
    return Gemma2Model(Gemma2Config(**{**SHAPE, "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0}))


def bert_tokenizer() -> BertTokenizer:
    letters = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=77)


def bert() -> BertModel:
    return BertModel(
        BertConfig(
            vocab_size=256,
            hidden_size=TEXT,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=2 * TEXT,
            max_position_embeddings=96,
        )
    )
