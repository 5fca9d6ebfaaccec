"""MosaicBERT encoder and its Hugging Face model classes.

Shape letters: B sequences, S padded length, T tokens after unpadding, C hidden, H heads, D head size, F intermediate,
V vocabulary, M masked tokens.
"""
