"""Training checkpoints of other frameworks, read as model directories: DeepSpeed's and Megatron-LM's."""
