"""Documents and the windows of token ids cut from them.

May import records and the ground modules; datasets and pyarrow load inside functions.
"""
