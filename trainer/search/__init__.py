"""A search: Optuna draws the jobs of a sweep one by one, by what came of the earlier ones."""
