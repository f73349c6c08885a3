"""What an attention layer of a denoiser attends to, and why.

`decide()` answers by what the layer is (its projections, its processor, `is_cross_attention`) and by the block around it:
several architectures put text and image into one sequence before attention, in blocks whose layers look like self-attention.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

CROSS, JOINT, TEXT, SELF = "cross", "joint", "text", "self"
_ALL = ("q", "k", "v", "out")
_ADDED = tuple(f"add_{feature}" for feature in _ALL)
_OWN_TEXT = ("add_k_proj", "to_k_t", "txt_kv_proj", "txt_attn_qkv")  # projections of the text beside those of the image
_OF_TEXT = {
    "context_refiner",  # Lumina2, Z-Image
    "token_refiner",  # HunyuanVideo, HunyuanImage
    "text_transformer_blocks",  # Kandinsky 5
    "text_fusion",  # Krea2
    "txt_mode_blocks",  # Flux3
    "perceiver",  # Bria Fibo 2
}
_POOLING = {"Kandinsky3AttentionPooling", "MochiAttentionPool"}
_OF_IMAGE = {"noise_refiner", "siglip_refiner", "mode_blocks"}
_OF_SOUND = {"audio_to_video_attn", "video_to_audio_attn", "va_cross_attention", "av_cross_attention"}
# Blocks that are given text and image as one sequence, though their attention is not called attn.
_ONE_SEQUENCE = {
    "BriaFibo2TransformerBlock",
    "ErnieImageSharedAdaLNBlock",
    "HiDreamImageSingleTransformerBlock",
    "Ideogram4TransformerBlock",
    "OmniGenBlock",
    "ZImageTransformerBlock",
}
TOKENS_FIRST = {"ErnieImageSharedAdaLNBlock"}  # blocks whose sequence is `[L, rows, D]` outside of attention
# Processors that put text and image into one sequence before to_q.
_JOINING = {
    "CogVideoXAttnProcessor2_0",
    "CogView4AttnProcessor",
    "CogView4TrainingAttnProcessor",
    "EasyAnimateAttnProcessor2_0",
    "FusedCogVideoXAttnProcessor2_0",
    "GlmImageAttnProcessor",
}


@dataclass(frozen=True)
class Attention:
    """What a layer attends to, and `why` in one sentence.

    `kind` is cross (the image attends to the prompt), joint (prompt and image attend to both), text (the prompt attends to
    itself) or self (no prompt in it). `text` are the features of the projections that receive tokens of the prompt alone, and
    `both` of those that receive prompt and image as one sequence.
    """

    kind: str
    why: str
    text: tuple[str, ...] = ()
    both: tuple[str, ...] = ()

    @property
    def sees_text(self) -> bool:
        """Whether the prompt is in it."""
        return self.kind != SELF


def decide(path: str, layer: nn.Module, block: nn.Module, denoiser: nn.Module) -> Attention:
    """What the attention layer at a path of a denoiser attends to; `block` is the module that has it."""
    *places, name = path.split(".")
    processor = type(getattr(layer, "processor", None)).__name__
    block_name = type(block).__name__
    is_cross = getattr(layer, "is_cross_attention", None)
    own = next((each for each in _OWN_TEXT if isinstance(getattr(layer, each, None), nn.Module)), None)
    if place := next((each for each in places if each in _OF_TEXT), None):
        return Attention(TEXT, f"it is in {place}, which is given the text alone", text=_ALL)
    if pooling := {block_name, type(layer).__name__} & _POOLING:
        return Attention(TEXT, f"{pooling.pop()} makes one token of the text", text=("k", "v"))
    if place := next((each for each in places if each in _OF_IMAGE), None):
        return Attention(SELF, f"it is in {place}, which is given the image alone")
    if "fuser" in places:
        return Attention(SELF, "it attends to the image and to the phrases of boxes (fuser), which are no prompt")
    if name in _OF_SOUND:
        return Attention(SELF, "it attends between video and sound")
    if block_name == "Cosmos3VLTextMoTDecoderLayer":
        return Attention(JOINT, "the image has projections of its own (add_k_proj) beside those of the text", text=_ALL)
    if own and is_cross and "AddedKV" not in processor:  # Wan, as opposed to DeepFloyd IF and Kandinsky 2
        return Attention(CROSS, f"it is cross-attention (is_cross_attention), with {own} for an image", text=("k", "v"))
    if own:
        return Attention(JOINT, f"the text has projections of its own ({own})", text=_ADDED)
    if name.startswith("cross_att"):
        return Attention(CROSS, f"its name is {name}", text=("k", "v"))
    if block_name == "Kandinsky3AttentionBlock":
        return _of_kandinsky_3(places)
    if block_name == "SDCascadeAttnBlock":
        return _of_cascade(block)
    if block_name in _ONE_SEQUENCE:
        return Attention(JOINT, f"{block_name} is given text and image as one sequence", both=_ALL)
    if (model := type(denoiser).__name__) == "PriorTransformer":
        return Attention(JOINT, f"{model} puts the text and the embedding of the image into one sequence", both=_ALL)
    if processor in _JOINING:
        return Attention(JOINT, f"{processor} puts text and image into one sequence", both=_ALL)
    if is_cross:
        return Attention(CROSS, "it is cross-attention (is_cross_attention)", text=("k", "v"))
    if name == "attn":
        return Attention(JOINT, f"{block_name} is given text and image as one sequence", both=_ALL)
    if name.endswith("attn2") and is_cross is None:
        return Attention(CROSS, f"its name is {name}", text=("k", "v"))
    return Attention(SELF, f"{type(layer).__name__} called {name} is given no text")


def _of_kandinsky_3(places: list[str]) -> Attention:
    if places[-1] == "0":
        return Attention(SELF, "the first attention of a block of Kandinsky 3 is given no text")
    return Attention(CROSS, "all attention but the first of a block of Kandinsky 3 is given the text", text=("k", "v"))


def _of_cascade(block: Any) -> Attention:
    if block.self_attn:
        return Attention(JOINT, "SDCascadeAttnBlock puts the text behind the image for to_k and to_v", both=("k", "v"))
    return Attention(CROSS, "SDCascadeAttnBlock gives the text to to_k and to_v", text=("k", "v"))
