"""The tiny Qwen3-VL: its shape, a forward pass for packed rows, and the folder that vLLM loads."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from demo_models.training import chat
from demo_models.training.batches import MERGE, PATCH, Batch
from demo_models.training.tokenizer import text_ids, vision_ids

FEWEST_PIXELS, MOST_PIXELS = 128 * 128, 192 * 192
BLOCKED = -1e4


def new_model(tokenizer: Any) -> Any:
    """Fresh weights, 4.2 M of them: 5 layers of width 192 that read, 4 of width 128 that see."""
    width = 192
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    }
    text = {
        **text_ids(tokenizer),
        "hidden_size": width,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "rope_parameters": rope,
    }
    vision = {
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": width,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [1, 2],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        **vision_ids(tokenizer),
        tie_word_embeddings=True,
    )
    return Qwen3VLForConditionalGeneration(config)


def prepare(model: Any) -> Any:
    """Attention as plain products, and in one call for all pictures of a batch, which have one size."""
    AttentionInterface.register("plain", _plain)
    model.model.language_model.config._attn_implementation = "plain"
    for block in model.model.visual.blocks:
        block.attn.forward = types.MethodType(_attend, block.attn)
    return model


def _plain(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Few passes over the scores: that is what short sequences and narrow heads spend their time on."""
    rows, heads, length, width = query.shape
    share = heads // key.shape[1]  # queries that share a key are one longer query
    query = query.reshape(-1, share * length, width)
    key, value = key.reshape(-1, length, width), value.reshape(-1, length, width)
    mask = attention_mask.flatten(0, 1).to(query.dtype)
    scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=scaling)
    mixed = torch.bmm(torch.softmax(scores, -1), value)
    return mixed.view(rows, heads, length, width).transpose(1, 2), None


def _attend(
    self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any, **_: Any
) -> Tensor:
    total, pictures = hidden_states.shape[0], len(cu_seqlens) - 1
    query, key, value = self.qkv(hidden_states).reshape(total, 3, self.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    query, key, value = (
        x.reshape(pictures, total // pictures, self.num_heads, -1).transpose(1, 2).to(value.dtype)
        for x in (query, key, value)
    )
    scores = torch.softmax((query * self.scaling) @ key.transpose(-1, -2), -1)
    return self.proj((scores @ value).transpose(1, 2).reshape(total, -1))


def attention_mask(groups: Tensor, config: Any) -> Tensor:
    """0 where a token may look: back, at the shared part and its own branch; as `_plain` takes it.

    (rows, key heads, query heads per key head * length, length).
    """
    length = groups.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=groups.device).tril()
    to = groups[:, None, :]
    allowed = past & ((to == 0) | (to == groups[:, :, None]))
    mask = torch.where(allowed, 0.0, BLOCKED).to(torch.bfloat16)[:, None]
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    return mask.expand(-1, heads, -1, -1).reshape(len(groups), keys, -1, length)


def forward(model: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Hidden states (rows, length, width), and what the vision tower says of each cell (cells, width)."""
    reader, seer = model.model.language_model, model.model.visual
    embedded, cells, seen = reader.embed_tokens(batch.ids), None, {}
    if batch.patches is not None:
        grid = torch.tensor([[1, *batch.grid]] * len(batch.ids), device=batch.ids.device)
        output = seer(batch.patches, grid)
        cells = output.pooler_output
        at = batch.ids == model.config.image_token_id
        embedded = embedded.masked_scatter(at[..., None], cells.to(embedded.dtype))
        seen = {"visual_pos_masks": at, "deepstack_visual_embeds": output.deepstack_features}
    output = reader(
        inputs_embeds=embedded,
        position_ids=batch.positions,
        attention_mask=attention_mask(batch.groups, model.config.text_config),
        use_cache=False,
        **seen,
    )
    return output.last_hidden_state, cells


def predictions(model: Any, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token that counts: logits (n, vocabulary), id (n), weight (n)."""
    counts = batch.weights[:, 1:] > 0
    logits = model.lm_head(hidden[:, :-1][counts]).float()
    return logits, batch.ids[:, 1:][counts], batch.weights[:, 1:][counts]


def answer_loss(model: Any, hidden: Tensor, batch: Batch) -> Tensor:
    """Weighted cross entropy of the answers."""
    logits, wanted, weights = predictions(model, hidden, batch)
    return (cross_entropy(logits, wanted, reduction="none") * weights).sum() / weights.sum()


def export(model: Any, tokenizer: Any, out: Path) -> None:
    """Write bf16 weights, tokenizer, chat template and image processor to a folder."""
    copy = Qwen3VLForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16)
    token = tokenizer.convert_tokens_to_ids
    copy.generation_config.eos_token_id = [token("<|im_end|>"), token("<|endoftext|>")]
    copy.generation_config.pad_token_id = token("<|endoftext|>")
    copy.generation_config.do_sample = False
    tokenizer.chat_template = chat.TEMPLATE
    copy.save_pretrained(out)
    tokenizer.save_pretrained(out)
    processor = {
        "processor_class": "Qwen3VLProcessor",
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "size": {"shortest_edge": FEWEST_PIXELS, "longest_edge": MOST_PIXELS},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    image = {"image_processor_type": "Qwen2VLImageProcessorFast", **processor}
    video = {"video_processor_type": "Qwen3VLVideoProcessor", **processor}
    (out / "preprocessor_config.json").write_text(json.dumps(image, indent=1))
    (out / "video_preprocessor_config.json").write_text(json.dumps(video, indent=1))
    (out / "chat_template.json").write_text(json.dumps({"chat_template": chat.TEMPLATE}))
    for path in out.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes 0600, which no other user could serve
