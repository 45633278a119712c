"""What a resumed command line means, and where a start may write."""
