"""The record of a run and the report made from it."""
