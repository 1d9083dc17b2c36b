"""Evaluation: every score with its protocol, its counts and its interval; the item rows are the source of truth."""
