"""Networks compared and exported."""
