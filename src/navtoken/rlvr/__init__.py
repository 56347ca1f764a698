"""RLVR on navigation tokens: DAPO on TRL, with a choice of the tokens that carry gradient."""
