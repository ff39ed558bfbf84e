"""Statistics of artifacts of the text_to_sql sample that were made before they were typed."""

from typing import Any

from finetune_assets.evaluation.results import EvaluationRecord
from finetune_assets.models.records import (
    AdapterRecord,
    BaseRecord,
    MergedRecord,
    TrainingSetRecord,
)
from finetune_assets.registry.promotion import RegisteredRecord
from finetune_assets.storage.artifacts import Record

HARDWARE = {
    "device": "cpu", "name": "CPU AVX512", "devices": 1, "dtype": "bfloat16",
    "attention": "sdpa", "optimizer": "adamw_torch_fused", "tokens_per_batch": 1024,
    "generation_batch": 32, "use_liger_kernel": False, "gradient_checkpointing": False,
    "threads": 2, "document_attention": True, "fused_lora": True, "fused_norms": True,
    "keep_dequantised": True, "tokens_per_second": 400.0, "compile_seconds": 17.0,
    "compile_gain": 0.0,
}  # fmt: skip

SPLIT = {
    "rows": 640, "contexts": 107, "truncated_rows": 0, "dropped_rows": 1,
    "dropped_at": ["questions.jsonl:7"], "tokens": 51062, "tokens_with_loss": 11325,
    "tokens_without_loss": 39737, "longest": 97,
    "lengths": {"edges": [66, 67, 68], "counts": [2, 8]}, "fill": 0.9321, "unwanted_rows": 0,
    "preview": [[["<|im_start|>user\nShow the name.<|im_end|>", False], ["SELECT name", True]]],
}  # fmt: skip

ADAPTER = {
    "train_loss": [[1, 1.7994024753570557], [2, 1.9704843759536743]],
    "validation_loss": [[54, 0.007898963429330828], [108, 0.003664314841919919]],
    "learning_rate": [[1, 0.0], [2, 0.00025]],
    "samples": [{"step": 54, "prompt": "What?", "answer": "SELECT 1", "stopped": True}],
    "best_validation_loss": 0.003664314841919919, "best_step": 108, "steps": 108, "epochs": 2.0,
    "resumed_from_step": None, "seconds_training": 385.15, "seconds_loading": 14.25,
    "tokens_trained": 102124, "tokens_per_second": 265.2, "tokens_per_epoch": 51062,
    "trainable_parameters": 4884480,
    "schedule": {
        "micro_batch": 2, "accumulation": 1, "total_steps": 108, "eval_steps": 54, "save_steps": 54
    },
    "hardware": HARDWARE,
    "kernels": {
        "attention": "documents", "fused_lora_layers": 210, "fused_norms": 61,
        "dequantised_layers": 210, "gradient_checkpointing": False, "compiled": False,
        "dtype": "bfloat16",
    },
    "processes": 1, "process_peak_gb": 2.63, "peak_rss_gb": 2.63,
}  # fmt: skip

SCORES = {
    "base": {"loss": 1.4950718721234186, "exact_match": 0.0, "runaway": 87.0},
    "tuned": {"loss": 0.023441963445504026, "exact_match": 0.8916666666666667, "runaway": 0.0},
}

MADE_BEFORE: list[tuple[type[Record], dict[str, Any]]] = [
    (
        BaseRecord,
        {
            "architecture": "LlamaForCausalLM", "parameters": 134515008, "context_length": 8192,
            "vocabulary": 49152, "template_fingerprint": "dc126cf0155881b6f71b8e9a",
            "stop_tokens": ["<|im_end|>"], "bytes": 538090408, "peak_rss_gb": 1.26,
        },
    ),
    (
        TrainingSetRecord,
        {
            "stop_token_ids": [2], "train": SPLIT, "shuffle": True, "validation": SPLIT,
            "peak_rss_gb": 0.548,
        },
    ),
    (AdapterRecord, ADAPTER),
    (AdapterRecord, ADAPTER | {"device_peak_gb": 7.125}),
    (
        MergedRecord,
        {
            "merged_layers": 210, "replaced_tensors": 0, "untied": [],
            "max_logit_difference": 0.000102996826171875,
            "relative_difference": 1.2983274753118222e-06, "positions": 1024,
            "top_token_disagreements": 0, "stored_dtype": "F32", "peak_rss_gb": 1.532,
        },
    ),
    (
        EvaluationRecord,
        {
            "rows": 120, "rows_with_loss": 120, "scores": SCORES,
            "slices": {"tables": {"seen": {"rows": 60, "scores": {"base": {"runaway": 43.0}}}}},
            "hardware": HARDWARE, "peak_rss_gb": 1.629,
        },
    ),
    (
        RegisteredRecord,
        {
            "version": 1, "decision": "promoted", "reason": "first champion, loss 0.8917",
            "peak_rss_gb": 1.245,
        },
    ),
]  # fmt: skip
