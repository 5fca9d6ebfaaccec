"""Data loading from a token store: sample order, masking, balancing and collation."""
