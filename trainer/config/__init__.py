"""The configuration: typed, checked and explained."""
