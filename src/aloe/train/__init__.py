"""Training: `losses`, `logprobs`, `packing`, `masks` and `schedule` compute, `loop` is the one loop, `sft` and `dpo`
are the two steps."""
