"""Fine-tuning scores: records in scores.jsonl, and statistics over tasks and seeds."""
