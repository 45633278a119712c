"""Charts of the reports, drawn by matplotlib and shown as SVG that follows the theme of its page."""
