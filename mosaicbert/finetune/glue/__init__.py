"""Fine-tuning on GLUE: `mosaicbert glue`."""
