"""Fine-tuning of pretrained encoders: GLUE with the protocol of the paper, and task datasets."""
