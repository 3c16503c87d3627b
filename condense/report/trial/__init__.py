"""The pages of a trial: HTML, Markdown, terminal. May import report's shared modules."""
