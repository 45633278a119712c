"""What is measured, and measured again."""
