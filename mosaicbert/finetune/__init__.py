"""From a pretrained encoder to task scores: GLUE by the paper's protocol, and the user's own task."""
