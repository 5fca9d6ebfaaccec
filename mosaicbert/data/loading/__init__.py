"""Token store to training batches: sample order, masking, balancing, collation."""
