"""Keys of a checkpoint folder's JSON files by their effect; see `configs`.

Kinds: llm (`llm_config.json`), vit, vae, root (`config.json`), and rope (the object under `rope_parameters` or
`rope_scaling`). Names are those of transformers' configs of Qwen2 and SigLIP and of BAGEL's own code.
"""

from __future__ import annotations

from typing import Any


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NONE = (None,)
_OFF = (None, False)

OBEYED: dict[str, frozenset[str]] = {
    "llm": _names(
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "rope_theta rope_parameters rope_scaling rms_norm_eps max_position_embeddings layer_types "
        "separate_experts"
    ),
    "vit": _names(
        "hidden_size intermediate_size num_hidden_layers num_attention_heads patch_size image_size layer_norm_eps"
    ),
    "vae": _names(
        "kind block_size downsample ch ch_mult num_res_blocks norm_groups z_channels scale_factor shift_factor"
    ),
    "root": _names(
        "latent_patch_size max_latent_size vit_max_num_patch_per_side timestep_shift llm_config vit_config vae_config"
    ),
    "rope": frozenset({"rope_theta"}),
}
"""Sizes and numbers that the model is built from, or that are checked against them."""

_TRANSFORMERS: dict[str, tuple[Any, ...]] = {
    "quantization_config": _NONE,
    "pruned_heads": (None, {}, []),
    "is_encoder_decoder": _OFF,
    "add_cross_attention": _OFF,
    "cross_attention_hidden_size": _NONE,
}
FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "llm": {
        **_TRANSFORMERS,
        "model_type": ("qwen2",),
        "hidden_act": ("silu",),
        # Qwen2 has biases on q, k and v and nowhere else.
        "attention_bias": (None, True),
        "qkv_bias": (None, True),
        "o_proj_bias": _OFF,
        "mlp_bias": _OFF,
        "qk_norm": (None, True),
        "use_qk_norm": (None, True),
        "is_causal": (None, True),
        "attention_dropout": (None, 0),
        "use_sliding_window": _OFF,
        "tie_word_embeddings": (False,),
        "partial_rotary_factor": (None, 1),
        "rope_interleaved": _OFF,
        "attn_logit_softcapping": _NONE,
        "final_logit_softcapping": _NONE,
        "query_pre_attn_scalar": _NONE,
        "attention_multiplier": _NONE,
        "embedding_multiplier": (None, 1),
        "residual_multiplier": (None, 1),
        "logits_scaling": (None, 1),
        "logit_scale": (None, 1),
        "num_experts": _NONE,
        # Overridden by BAGEL's code: both mean the decoder with separate experts.
        "layer_module": (None, "Qwen2MoTDecoderLayer", "Qwen2DecoderLayer"),
    },
    "vit": {
        **_TRANSFORMERS,
        "model_type": ("siglip_vision_model",),
        "hidden_act": ("gelu_pytorch_tanh",),
        "num_channels": (3,),
        "attention_dropout": (None, 0),
        "rope": _OFF,
    },
    "vae": {
        "kind": ("flux", "space_to_depth"),
        "in_channels": (3,),
        "out_ch": (3,),
        "out_channels": (3,),
        "dropout": (None, 0),
        "double_z": (None, True),
        "attn_resolutions": (None, []),
    },
    "root": {
        "quantization_config": _NONE,
        "connector_act": ("gelu_pytorch_tanh",),
        "interpolate_pos": _OFF,
        "visual_gen": (None, True),
        "visual_und": (None, True),
        "tie_word_embeddings": (None, False),
    },
    "rope": {"rope_type": ("default",), "type": ("default",), "partial_rotary_factor": (None, 1)},
}
"""Keys that affect the computation -> implemented values."""

_NOT_COMPUTED = _names(  # written by transformers for every model
    "architectures auto_map transformers_version torch_dtype dtype initializer_range initializer_factor use_cache "
    "return_dict output_hidden_states output_attentions torchscript use_bfloat16 tf_legacy_loss "
    "chunk_size_feed_forward "
    "is_decoder tie_encoder_decoder finetuning_task id2label label2id tokenizer_class prefix bos_token_id pad_token_id "
    "eos_token_id sep_token_id decoder_start_token_id task_specific_params problem_type name_or_path "
    "attn_implementation "
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k "
    "top_p "
    "typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens"
)
HARMLESS: dict[str, frozenset[str]] = {
    # The window and its layers only apply with use_sliding_window; which parts train is set by the recipe.
    "llm": _NOT_COMPUTED | {"sliding_window", "max_window_layers", "pretraining_tp", "freeze_und"},
    # The pooling head is not part of BAGEL; a vision tower has no word embeddings to tie.
    "vit": _NOT_COMPUTED | {"vision_use_head", "tie_word_embeddings", "projection_dim"},
    "vae": frozenset({"resolution"}),
    "root": _NOT_COMPUTED | {"model_type"},
    "rope": frozenset(),
}
"""Keys that do not affect the computation."""
