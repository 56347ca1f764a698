"""The pair that ships in the package: a tokenizer, three small checkpoints and the recipe that makes them.

Folders `slm`, `llm` and `base` are in the standard `transformers` layout. `base` has the LLM's shape and stops
early in its training, so that reinforcement learning has something left to do.
"""
