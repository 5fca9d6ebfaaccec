"""Fine-tuning on a task dataset: `mosaicbert finetune`."""
