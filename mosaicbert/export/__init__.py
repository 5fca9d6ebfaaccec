"""Export of trained models to Hugging Face folders and to the layout of published MosaicBERT checkpoints."""
