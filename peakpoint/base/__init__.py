"""What every other package stands on: errors, files, locks, text. Needs no torch."""
