"""Text in, tokens out: corpora in Megatron's .bin/.idx format, and batches of packed documents."""
