"""The proof that a run resumes exactly."""
