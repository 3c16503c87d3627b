"""The pages of a comparison: HTML, Markdown, terminal. May import report's shared modules."""
