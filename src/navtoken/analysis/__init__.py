"""What traces tell of navigation tokens: entropy patterns, scores under any checkpoint, perturbation, drift, overlap.

Nothing here draws: results are plain numbers, tables and token ids, which commands hand to `report`.
"""
