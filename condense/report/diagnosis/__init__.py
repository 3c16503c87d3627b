"""The pages of a diagnosis: HTML, Markdown, terminal. May import report's shared modules."""
