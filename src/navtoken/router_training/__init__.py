"""A router from labels: examples, training, thresholds by routed generation, and a report on problems that neither saw."""
