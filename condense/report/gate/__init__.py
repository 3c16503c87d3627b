"""The outputs of a gate: terminal, Markdown, JUnit, annotations. May import report's shared modules."""
