"""An OpenAI-compatible server for a pair under a policy, and the page on which people see it think."""
