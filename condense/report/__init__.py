"""Turns a record into text: terminal, HTML, Markdown, CSV, JUnit.

May import everything but training, treatment, trials and cli; nothing imports it but cli and, by name when
called, records.base.
"""
