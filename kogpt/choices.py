"""The words that a setting may be, for the command line and for what the settings are told to.

Only the standard library may be imported here, for `kogpt --help` to answer at once.
"""

DTYPES = ("float32", "float16", "bfloat16")
INTEGERS = ("int8", "int4")
ON_OVERFLOW = ("error", "clamp", "bfloat16")

PRECISIONS = ("float32", "bfloat16")
ADAMW, EIGHT_BITS = OPTIMIZERS = ("adamw", "adamw-8bit")
FLOAT32, MASTER, STOCHASTIC = WEIGHTS = ("float32", "bfloat16-master", "bfloat16-stochastic")

LORA, QLORA = LOW_RANK = ("lora", "qlora")
P_TUNING, PROMPT_TUNING = SOFT_PROMPTS = ("p-tuning", "prompt-tuning")
FULL, INFERENCE = "full", "inference"
METHODS = (FULL, *LOW_RANK, *SOFT_PROMPTS)
COMPLETION, LABEL_WORDS, HEAD, REGRESSION = OBJECTIVES = (
    *("completion", "label-words", "head", "regression"),
)
ENCODERS = ("lstm", "mlp")
BEST, LAST = KEPT = ("best", "last")

SUM, PER_TOKEN, PER_CHARACTER, CALIBRATED = RULES = (
    *("sum", "per-token", "per-character", "calibrated"),
)
