"""R2R's data engine: the LLM's responses -> SLM prefill -> continuations -> verdicts -> labels."""
