"""Commands that inspect recipes and token stores, one module each."""
