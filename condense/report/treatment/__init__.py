"""The pages of a treatment: HTML, model card, Markdown, terminal. May import report's shared modules."""
